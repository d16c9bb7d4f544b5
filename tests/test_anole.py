"""Anole: what the authors' code says of tokens and shows, the published layout, and what is trained and refused."""

from __future__ import annotations

import json
import runpy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.anole import BOI, BOS, EOT, Anole
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sizing_known import KNOWN
from rwk.policy_opt.sizing_shape import shape_of
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("anole_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "anole.json").read_text())
NAME, PROMPTS, TOKENS = "anole.7b_v01", list(CASE["PROMPTS"]), torch.tensor(CASE["TOKENS"])


def tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return OrderedDict((key, torch.from_numpy(value)) for key, value in arrays.items())


def write_published(folder: Path) -> None:
    """The files as the authors publish them, of small networks: folders, a table and losses of training too."""
    for name in ("models/7b", "tokenizer"):
        (folder / name).mkdir(parents=True)
    table = {"rope.freqs": torch.zeros(4)}
    torch.save(tensors(CASE["transformer"]()) | table, folder / "models/7b/consolidated.pth")
    (folder / "tokenizer/text_tokenizer.json").write_text(CASE["tokenizer"]())
    loss = {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": tensors(CASE["vq"]()) | loss}, folder / "tokenizer/vqgan.ckpt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the published one, of images of 8 by 8 pixels."""
    from dataclasses import replace

    monkeypatch.setattr(Anole, "spec", replace(Anole.spec, image_size=2 * CASE["SIDE"]))
    write_published(tmp_path)
    return tmp_path


def test_logprobs_are_those_of_the_authors_code(folder: Path, record_property: Any) -> None:
    """Their prompt, their three branches of guidance and their codes give the same log-probabilities."""
    generator = GENERATORS.load(f"{NAME}@{folder}")
    assert isinstance(generator, Anole)
    assert [generator.prompt_ids(prompt) for prompt in PROMPTS] == RECORDED["ids"]
    recipe = Sampling(CASE["GUIDANCE"], CASE["TEMPERATURE"])
    assert Sampling(CASE["GUIDANCE"], CASE["TEMPERATURE"], top_p=0.9) == generator.spec.sampling
    rollout = Rollout(PROMPTS, torch.arange(len(PROMPTS)), TOKENS, torch.zeros(TOKENS.shape), recipe)
    with torch.no_grad():
        found = generator.logprobs(rollout)
    AGREE(record_property, NAME, RECORDED, found, torch.tensor(RECORDED["logprobs"]), atol=1e-4)


def test_images_are_those_of_the_authors_code(folder: Path) -> None:
    """To the last of 255 levels but for rounding; even grey has the codes that their VQ gives it."""
    generator = Anole(weights=folder)
    shown = torch.stack([pil_to_tensor(image).permute(1, 2, 0).flatten() for image in generator.decode(TOKENS)]).int()
    off = (shown - torch.tensor(RECORDED["levels"])).abs()
    assert off.max() <= 1  # what lies on a level may be rounded to either side
    assert off.float().mean() < 0.01
    grey = torch.tensor([RECORDED["grey"]])
    assert generator.decode_partial(TOKENS[:1, :0])[0].tobytes() == generator.decode(grey)[0].tobytes()
    half = torch.cat([TOKENS[:1, :8], grey[:, 8:]], 1)
    assert generator.decode_partial(TOKENS[:1, :8])[0].tobytes() == generator.decode(half)[0].tobytes()


def test_the_files_may_lie_in_one_folder(folder: Path) -> None:
    """As they are downloaded one by one."""
    for path in list(folder.rglob("*.*")):
        path.rename(folder / path.name)
    for name in ("models/7b", "models", "tokenizer"):
        (folder / name).rmdir()
    generator = Anole(weights=folder)
    assert (generator.spec.tokens, generator.spec.codes) == (CASE["SIDE"] ** 2, CASE["CODES"])


@pytest.mark.parametrize("file", ["models/7b/consolidated.pth", "tokenizer/vqgan.ckpt"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "size"])
def test_a_checkpoint_that_does_not_fill_the_networks_is_refused(folder: Path, file: str, fault: str) -> None:
    """A key too few, too many, or of another shape is named, and so is one that tells a size."""
    held = torch.load(folder / file)
    state = held.get("state_dict", held)
    key, size = {
        "models/7b/consolidated.pth": ("norm.weight", "tok_embeddings.weight"),
        "tokenizer/vqgan.ckpt": ("decoder.norm_out.weight", "encoder.conv_in.weight"),
    }[file]
    if fault == "unexpected":
        state[f"{key.split('.')[0]}.odd.weight"] = torch.zeros(1)
    elif fault == "shape":
        state[key] = state[key][:-1].clone()
    else:
        del state[size if fault == "size" else key]
    torch.save(held, folder / file)
    told = {"unexpected": "odd.weight", "size": size.split(".")[0]}.get(fault, "norm")
    with pytest.raises(ValueError, match=rf"{NAME} (needs a checkpoint|cannot take this).*{told}"):
        Anole(weights=folder)


def test_a_tokenizer_of_scattered_codes_is_refused(folder: Path) -> None:
    """Codes that are not one row of ids could not be drawn from."""
    path = folder / "tokenizer" / "text_tokenizer.json"
    text = path.read_text()
    for name, told in (("IMGIMGBZ", "got 31 of them, from 4 on"), ("IMGIMG", "got 0 of them, from 0 on")):
        path.write_text(text.replace(name, "<reserved1>"))
        with pytest.raises(ValueError, match=f"ids of its 32 codes in one row, {told}"):
            Anole(weights=folder)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """Without a network the first file that lacks is named, with its size."""
    with pytest.raises(RunFailed, match=r"needs models/7b/consolidated.pth of GAIR/Anole-7b-v0.1 \(about 14027 MB\)"):
        Anole()
    with pytest.raises(ValueError, match="needs the file consolidated.pth of GAIR/Anole-7b-v0.1"):
        GENERATORS.load(f"{NAME}@{tmp_path}")


def test_prompts_are_turns() -> None:
    """Begin of the text, the prompt, end of the turn, begin of an image; no prompt spells a code."""
    generator = Anole.tiny()
    assert generator.tokenizer.decode(generator.prompt_ids("a cat")) == f"{BOS}a cat{EOT}{BOI}"
    assert generator.tokenizer.decode(generator.null_ids("a cat")) == f"{BOS}{BOI}"
    for control in (EOT, "IMGIMGBCZ"):
        with pytest.raises(ValueError, match=f"reads prompts in words, got its control token '{control}'"):
            generator.prompt_ids(f"a{control}cat")


def test_greedy_tokens_are_those_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers draws the same, guided, once its class no longer suppresses the codes."""
    generator = Anole.tiny()
    drawn = generator.sample(PROMPTS, seed=0, sampling=Sampling(guidance=3.0, top_k=1)).tokens
    assert len({tuple(row) for row in drawn.tolist()}) > 1
    codes = list(range(generator.first_code, generator.first_code + generator.spec.codes))
    generator.network.model.vocabulary_mapping.__dict__["image_tokens"] = []
    for row, prompt in zip(drawn, PROMPTS, strict=True):
        ids, null = (torch.tensor([ids(prompt)]) for ids in (generator.prompt_ids, generator.null_ids))
        options: dict[str, Any] = {"prefix_allowed_tokens_fn": lambda row, ids: codes, "do_sample": False}
        generated = generator.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            negative_prompt_ids=null,
            guidance_scale=3.0,
            max_new_tokens=len(row),
            **options,
        )
        assert (generated[0, ids.shape[1] :] - generator.first_code).tolist() == row.tolist()


def test_transformers_loads_what_was_saved(tmp_path: Path) -> None:
    """The transformer, as its own class keeps it."""
    from transformers import ChameleonForConditionalGeneration

    generator = Anole.tiny()
    generator.save(tmp_path)
    network = ChameleonForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(network.lm_head.weight, generator.module.lm_head.weight)


def test_what_writes_is_trained_and_the_vq_is_frozen() -> None:
    """Every parameter of the transformer gets a gradient, and LoRA reaches it."""
    generator = Anole.tiny()
    rollout = generator.sample(PROMPTS, seed=0)
    generator.logprobs(rollout).sum().backward()
    assert all(value.grad is not None for value in generator.module.parameters())
    assert not any(value.requires_grad for value in generator.vq.parameters())
    generator.module.zero_grad()
    with trainable(generator, Grpo(lora_rank=2), keep=False):
        learns = [name for name, value in generator.module.named_parameters() if value.requires_grad]
        assert any("q_proj" in name for name in learns)
        assert any("lm_head" in name for name in learns)


def test_its_size_is_known_without_weights() -> None:
    """Within a thousandth of what is built at full size."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    from rwk.adapters.llamagen_vq import Vq, VqConfig

    with torch.device("meta"):
        network = ChameleonForConditionalGeneration(ChameleonConfig(vocabulary_map={}))
        vq = Vq(VqConfig(8192, 256, attends=False, unit=False))
    del network.model.vqmodel
    shape = KNOWN[NAME]
    counted = [sum(value.numel() for value in part.parameters()) for part in (network, vq)]
    assert [shape.parameters, shape.decoder] == pytest.approx(counted, rel=1e-3)
    assert 2e-6 * counted[0] == pytest.approx(Anole.origins()[0].megabytes, rel=1e-3)
    tiny = shape_of(Anole.tiny())
    assert (tiny.layers, tiny.hidden, tiny.keys) == (2, 32, 32)
