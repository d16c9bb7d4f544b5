"""CycleReward: the scores of the official package for each variant's loading, its 128 tokens, and its address."""

from __future__ import annotations

import json
import runpy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters.blip_towers import BlipScorer, text_tower, vision_tower
from rwk.adapters.cyclereward import CycleCombo, CycleI2T, CycleT2I
from rwk.adapters.imagereward import ImageReward
from rwk.adapters.released import released
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("cyclereward.json").read_text())
TOLERANCE = 1e-5
"""Of scores that differ by 0.1 from picture to picture."""


def build() -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    shape = {"num_hidden_layers": CASE["DEPTH"], "num_attention_heads": CASE["HEADS"]}
    vision = vision_tower(224, hidden_size=CASE["WIDTH"], intermediate_size=4 * CASE["WIDTH"], **shape)
    words = {"vocab_size": len(CASE["VOCABULARY"]) + 2, "bos_token_id": None, "sep_token_id": 3}
    hidden = {"hidden_size": CASE["HIDDEN"], "intermediate_size": 4 * CASE["HIDDEN"]}
    return BlipScorer(vision, text_tower(CASE["WIDTH"], **shape, **hidden, **words), CycleCombo.head(CASE["HIDDEN"]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the weights of the recording under each variant's name, in the official layout, and its words."""
    tensors = {key: torch.tensor(value) for key, value in CASE["scorer"]((0, 2, 4, 6, 8)).items()}
    for variant in ("Combo", "T2I", "I2T"):
        torch.save(tensors, tmp_path / f"CycleReward-{variant}.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(CASE["VOCABULARY"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    monkeypatch.setattr(CycleCombo, "build", staticmethod(build))
    return tmp_path


@cache
def official() -> Tensor:
    return torch.tensor(RECORDED["scores"])  # [prompts, pictures]


def scores(reward: CycleCombo) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


@pytest.mark.parametrize("variant", [CycleCombo, CycleT2I, CycleI2T])
def test_scores_are_those_of_the_official_package(
    variant: type[CycleCombo], folder: Path, record_property: Any
) -> None:
    """With one file of weights, the package's `score` and the adapter agree on every prompt and picture.

    The file has the official layout and small random weights, and the same ones for each variant: the variants differ
    in nothing but their files.
    """
    assert RECORDED["package"] == "cyclereward"
    assert official().std(1).min() > 0.1  # pictures tell
    found = scores(variant(weights=folder, tokenizer=folder))
    AGREE(record_property, variant.spec.name, RECORDED, found, official(), atol=TOLERANCE)


@pytest.mark.parametrize("change", ["tokens of ImageReward", "no activation", "ReLU", "tanh GELU"])
def test_other_variants_do_not_pass(change: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells CycleReward from its relatives shifts some score by 100 times the tolerance of the comparison."""
    reward = CycleCombo(weights=folder, tokenizer=folder)
    if change == "tokens of ImageReward":
        reward.context = ImageReward.context
    else:
        other = {"no activation": torch.nn.Identity(), "ReLU": torch.nn.ReLU(), "tanh GELU": torch.nn.GELU("tanh")}
        for i in (1, 3, 5, 7):
            reward.network.mlp.layers[i] = other[change]
    factor = 10 if change == "tanh GELU" else 100  # it is a close approximation
    assert (scores(reward) - official()).abs().max() > factor * TOLERANCE


def test_128_tokens_are_read() -> None:
    """The word 126 places after [CLS] counts; the next one does not, and the warning says so."""
    reward, image = CycleCombo.tiny(), CASE["pictures"]()[0]
    words = ["a"] * 126
    first, second = reward.score([image, image], [" ".join(words), " ".join([*words[:-1], "dog"])]).values.tolist()
    assert abs(first - second) > 1e-4
    with pytest.warns(UserWarning, match="cyclereward.combo reads 128 tokens of a prompt, got 129"):
        assert reward.score([image], [" ".join([*words, "dog"])]).values.item() == pytest.approx(first, abs=1e-6)


def test_a_file_of_imagereward_is_refused(folder: Path) -> None:
    """ImageReward's head has other numbers in its names, so its file cannot pass for CycleReward's."""
    tensors = {key: torch.tensor(value) for key, value in CASE["scorer"]((0, 2, 4, 6, 7)).items()}
    torch.save(tensors, folder / "ImageReward.pt")
    with pytest.raises(ValueError, match=r"cyclereward.t2i .* 2 missing \(mlp.layers.8.bias, mlp.layers.8.weight\)"):
        CycleT2I(weights=folder / "ImageReward.pt")


class TestReleased:
    def test_the_file_is_fetched_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file goes to torch.hub's checkpoints, where a second call finds it without the address."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        (source := tmp_path / "weights.pth").write_bytes(b"weights")
        kept = released("cyclereward.combo", source.as_uri(), 1)
        assert kept == tmp_path / "hub" / "checkpoints" / "weights.pth"
        source.unlink()
        assert released("cyclereward.combo", source.as_uri(), 1).read_bytes() == b"weights"

    def test_no_file_is_one_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Offline, or where the address gives nothing, the error names address, size, folder and the way out."""
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        for offline, reason in ((True, "HF_HUB_OFFLINE is set"), (False, "URLError")):
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
            with pytest.raises(RunFailed, match=rf"x.y needs file.*weights.pth \(about 9 MB\).*{reason}.*x.y@PATH"):
                released("x.y", (tmp_path / "weights.pth").as_uri(), 9)
            assert not list((tmp_path / "checkpoints").glob("*"))

    def test_each_variant_asks_for_its_own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without weights of one's own the address is that of the variant in the authors' release."""
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for variant, name in ((CycleCombo, "Combo"), (CycleT2I, "T2I"), (CycleI2T, "I2T")):
            with pytest.raises(RunFailed, match=rf"releases/download/v1.0.0/CycleReward-{name}.pth"):
                variant()
