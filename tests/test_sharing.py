"""What rewards that score together share: files, networks, pictures and prompts, each once."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters import published
from rwk.adapters.aesthetic import AestheticV1Base32
from rwk.adapters.clip_towers import OpenClipReward, bucketed, tokenizer
from rwk.adapters.clipscore import ClipCosine, ClipScore, ClipScoreNoPrefix
from rwk.adapters.hpsv2 import Hpsv2, Hpsv2Legacy
from rwk.adapters.preprocess import Preprocess
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.registry import load_all
from rwk.rewards.scoring import Means, prefer_fast, prefer_stored, score_items

CASE = runpy.run_path(str(Path(__file__).with_name("tower_case.py")))
PROMPTS = ("a dog", "", "three small yellow birds on the branch of a tree, a lake behind them", "a red cube")
NAMES = ("clipscore.b32", "aesthetic.v1_b32", "clipscore.b32_cosine", "clipscore.b32_noprefix")


def scored(items: list[Item], rewards: dict[str, Reward], **means: Any) -> dict[str, list[float | None]]:
    """The scores of the items, which come in their order."""
    rows = [row for batch in score_items(items, rewards, Means(**means)) for row in batch]
    assert [row.image for row in rows] == [str(item.image) for item in items]
    return {name: [row.scores[name] for row in rows] for name in rewards}


def test_stored_pictures_share_one_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turned picture and a clear one score as they are stored where that is asked for, else as they are seen.

    One that cannot, here a measure of pixels, keeps to what is seen; still every file is opened once for both.
    """
    folder = CASE["published"](tmp_path, monkeypatch)
    plain = Image.merge("RGB", [Image.effect_noise((60, 40), 90) for _ in "RGB"])
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(tmp_path / "turned.png", exif=exif)
    clear = plain.copy()
    clear.putalpha(Image.effect_noise((60, 40), 90))
    clear.save(tmp_path / "clear.png")
    items = [Item(tmp_path / file, "a dog") for file in ("turned.png", "clear.png")]
    white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    seen = [plain.transpose(Image.Transpose.ROTATE_270), white]
    name = f"clipscore.b32_cosine@{folder}"
    rewards = load_all([name, "colorfulness"])
    opened: list[Path] = []
    whole = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or whole(path))
    as_seen = scored(items, rewards)
    assert prefer_stored(rewards) == ["colorfulness"]
    as_stored = scored(items, rewards)
    assert sorted(opened) == sorted(2 * [item.image for item in items])
    fresh = load_all([name])[name]
    for found, pictures in ((as_seen, seen), (as_stored, [plain, plain])):
        expected = fresh.score(pictures, ["a dog"] * 2).values
        torch.testing.assert_close(torch.tensor(found[name]), expected, rtol=0, atol=1e-6)
    files = [whole(item.image) for item in items]
    torch.testing.assert_close(rewards[name].score(files, ["a dog"] * 2).values, torch.tensor(as_stored[name]))
    assert as_stored["colorfulness"] == as_seen["colorfulness"]
    assert all(abs(one - two) > 1e-4 for one, two in zip(as_seen[name], as_stored[name], strict=True))  # type: ignore[operator]


def test_stored_pictures_by_the_command(rwk: Callable[..., Any], tmp_path: Path) -> None:
    """`rwk score --preprocessing stored` says which rewards it does not reach, its help and `rwk info` what it is."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    ended = rwk("score", "red.png", "--reward", "contrast", "--preprocessing", "stored")
    assert ended.code == 0
    assert "--preprocessing stored changes nothing of contrast: images are upright and on white there." in ended.err
    assert "upright by EXIF and, if transparent, on white" in " ".join(rwk("score", "--help").out.split())
    told = json.loads(rwk("info", "hpsv2.v21", "--json").out)["preprocessing"]
    assert told.startswith("upright by EXIF, transparency on white, longer side to 224 pixels, black around")


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_a_file_of_weights_is_held_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Three CLIPScores read CLIP's file once between them and hold one network, and LAION's predictor its tower."""
    folder = CASE["published"](tmp_path, monkeypatch)
    files: list[str] = []
    whole = published.read

    def read(path: Path) -> dict[str, torch.Tensor]:
        files.append(path.name)
        return whole(path)

    monkeypatch.setattr(published, "read", read)
    rewards = load_all([f"{name}@{folder}" for name in names], device="cpu")
    found = {reward.spec.name: reward for reward in rewards.values()}
    assert len({found[name].network for name in NAMES if "clip" in name}) == 1  # type: ignore[attr-defined]
    assert len({reward.tower for reward in found.values()}) == 1  # type: ignore[attr-defined]
    assert files == ["open_clip_model.safetensors"]
    alone = load_all([f"clipscore.b32@{folder}"])[f"clipscore.b32@{folder}"]
    assert alone.network is not found["clipscore.b32"].network  # type: ignore[attr-defined]


def test_a_name_is_loaded_once() -> None:
    """A reward that is named by itself and in two expressions is one object."""
    rewards = load_all(["contrast", "2*contrast+exposure", "0.5*contrast+noise"])
    for name in ("2*contrast+exposure", "0.5*contrast+noise"):
        assert rewards[name].parts()["contrast"] is rewards["contrast"]


def on_one_tower() -> dict[str, Reward]:
    first = ClipScore.tiny()
    predictor = AestheticV1Base32.tiny()
    predictor.network.tower = first.tower  # type: ignore[assignment]
    others = [kind.of(first.network, preprocess=first.preprocess) for kind in (ClipCosine, ClipScoreNoPrefix)]
    return {reward.spec.name: reward for reward in (first, predictor, *others)}


def test_a_tower_sees_an_image_once_and_a_prompt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rewards on one tower embed 9 images once each, and 4 prompts once with and once without the prefix."""
    items = CASE["draw"](tmp_path, 9, ("a dog", "a cat", "a red cube", "birds"))
    rewards = on_one_tower()
    images = [Image.open(item.image) for item in items]
    expected = {name: each.score(images, [i.prompt for i in items]).values for name, each in rewards.items()}
    embedded = CASE["counted"](monkeypatch, OpenClipReward, "image_features")
    by_predictor = CASE["counted"](monkeypatch, AestheticV1Base32, "embed_ready")
    read = CASE["counted"](monkeypatch, OpenClipReward, "text_features")
    prepared: list[Image.Image] = []
    image = Preprocess.image

    def prepare(self: Preprocess, picture: Image.Image) -> torch.Tensor:
        prepared.append(picture)
        return image(self, picture)

    monkeypatch.setattr(Preprocess, "image", prepare)
    found = scored(items, rewards, batch_size=2)
    for name, values in found.items():
        torch.testing.assert_close(torch.tensor(values), expected[name], rtol=0, atol=2e-6)
        assert expected[name].std() > 1e-3
    assert sum(embedded) + sum(by_predictor) == 9
    assert sum(read) == 4 + 4
    assert len(prepared) == 9


def test_rewards_that_prepare_otherwise_share_nothing_but_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HPSv2 and its legacy variant have one network but other pixels: an image is embedded twice, scores differ."""
    first = Hpsv2.tiny()
    legacy = Hpsv2Legacy.of(first.network, preprocess=Preprocess(32, "letterbox", backend="float", antialias=False))
    items = CASE["draw"](tmp_path, 6, PROMPTS[:1])
    embedded = CASE["counted"](monkeypatch, OpenClipReward, "image_features")
    found = scored(items, {"now": first, "then": legacy})
    assert sum(embedded) == 12
    assert all(a is not None and b is not None and abs(a - b) > 1e-5 for a, b in zip(*found.values(), strict=True))


def test_images_without_a_prompt_go_with_rewards_that_need_none(tmp_path: Path) -> None:
    """Where only some images have a prompt, a shared tower still serves the reward that reads none, for all of them."""
    items = CASE["draw"](tmp_path, 4, ("a dog", ""))
    found = scored(items, on_one_tower())
    assert [value is None for value in found["clipscore.b32"]] == [False, True, False, True]
    assert None not in found["aesthetic.v1_b32"]


def test_prompts_of_a_length_go_together() -> None:
    """Texts are embedded in groups of like length, in their order, as open_clip embeds them among 77 tokens."""
    reward = ClipScore.tiny()
    lengths: list[tuple[int, int]] = []

    def encode(ids: list[list[int]]) -> torch.Tensor:
        lengths.append((min(map(len, ids)), max(map(len, ids))))
        return torch.tensor([[float(len(row))] for row in ids])

    ids = [[1] * count for count in (3, 40, 16, 17, 77, 4, 48)]
    assert bucketed(encode, ids)[:, 0].tolist() == [3, 40, 16, 17, 77, 4, 48]
    assert sorted(lengths) == [(3, 16), (17, 17), (40, 48), (77, 77)]
    texts = [*PROMPTS, "word " * 200, "birds and " * 20]
    whole = reward.network.encode_text(tokenizer()(texts))  # type: ignore[operator]
    with pytest.warns(UserWarning, match="reads 77 tokens"):
        torch.testing.assert_close(reward.text_features(texts), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_towers_alone_run_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Embeddings are made in half precision; heads see float32, and rewards without a network stay as they are."""
    items = CASE["draw"](tmp_path, 4, PROMPTS[:1])
    rewards: dict[str, Reward] = {**on_one_tower(), "sharpness": load_all(["sharpness"])["sharpness"]}
    single = scored(items, rewards)
    seen: list[torch.dtype] = []
    head = ClipScore.score_features

    def watched(self: ClipScore, image: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        assert text is not None
        seen.extend([image.dtype, text.dtype, head(self, image, text).dtype])
        return head(self, image, text)

    monkeypatch.setattr(ClipScore, "score_features", watched)
    half = scored(items, rewards, precision=precision)
    assert set(seen) == {torch.float32}
    assert half["sharpness"] == single["sharpness"]
    assert half["clipscore.b32"] != single["clipscore.b32"]
    assert half["clipscore.b32"] == pytest.approx(single["clipscore.b32"], abs=0.05)


def test_the_command_line_takes_all_means(
    rwk: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fast preparation and half precision move the scores of `rwk score` a little; batches and threads do not."""
    name = f"clipscore.b32_noprefix@{CASE['published'](tmp_path, monkeypatch)}"
    CASE["draw"](tmp_path / "images", 6, PROMPTS[:1])
    found = []
    for more in ((), ("--preprocessing", "fast"), ("--precision", "bfloat16"), ("--batch-size", "1", "--workers", "3")):
        done = rwk("score", "images", "--prompt", "a dog", "-r", name, "--json", *more)
        assert done.code == 0, done.err
        found.append([row[name] for row in json.loads(done.out)["rows"]])
    exact, fast, half, small = found
    assert small == pytest.approx(exact, abs=2e-6)
    for moved in (fast, half):
        assert moved != pytest.approx(exact, abs=2e-6)
        assert moved == pytest.approx(exact, abs=0.03)


def test_fast_preparation_of_rewards_that_have_none(tmp_path: Path) -> None:
    """What takes whole images keeps getting them whole, whatever is preferred."""
    items = CASE["draw"](tmp_path, 2, PROMPTS[:1])
    rewards: dict[str, Reward] = {"contrast": load_all(["contrast"])["contrast"], "clip": ClipScore.tiny()}
    before = scored(items, {"contrast": rewards["contrast"]})
    prefer_fast(rewards)
    assert scored(items, rewards)["contrast"] == before["contrast"]
