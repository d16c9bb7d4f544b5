"""FGA-BLIP2: the scores of the authors' code, what it reads of a prompt, its elements and its gradient."""

from __future__ import annotations

import json
import runpy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.adapters import evalmuse
from rwk.adapters.evalmuse import FgaBlip2, FgaBlip2Whole, FgaElement, FgaNetwork, caption
from rwk.adapters.published import fill
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("evalmuse_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "evalmuse.json").read_text())
TOLERANCE = 1e-5
"""Relative."""
IMAGES = CASE["pictures"]()


def build() -> nn.Module:
    """The network of the recording: the published one, only smaller."""
    shape = {"num_hidden_layers": CASE["DEPTH"], "num_attention_heads": CASE["HEADS"]}
    sides = [{"hidden_size": width, "intermediate_size": 4 * width} for width in (CASE["WIDTH"], CASE["HIDDEN"])]
    vision = {**shape, **sides[0], "image_size": CASE["SIZE"], "patch_size": CASE["PATCH"]}
    return FgaNetwork(vision, {**shape, **sides[1], "vocab_size": len(CASE["VOCABULARY"]) + 1}, CASE["QUERIES"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the recording in a file as LAVIS writes it, and a small vocabulary beside it."""
    place = tmp_path_factory.mktemp("fga")
    tensors = {key: torch.tensor(value) for key, value in CASE["published"]().items()}
    held = {"model": tensors, "optimizer": {"state": {}}, "config": {"run": {"lr": 1e-5}}, "scaler": None, "epoch": 4}
    torch.save(held, place / "fga_blip2.pth")
    (place / "vocab.txt").write_text("\n".join(CASE["VOCABULARY"]))
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return place


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an adapter of a class from the file of the recording."""
    monkeypatch.setattr(FgaBlip2, "build", staticmethod(build))
    return lambda kind, **options: kind(weights=folder, **options)


def scores(reward: FgaBlip2, prompts: tuple[str, ...] = CASE["PROMPTS"]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some prompts are too long
        rows = [reward.score(IMAGES, [prompt] * len(IMAGES)).values for prompt in prompts]
    return torch.stack(rows)  # [prompts, pictures]


@pytest.mark.parametrize("kind", [FgaBlip2, FgaBlip2Whole])
def test_scores_are_those_of_the_authors_code(load: Any, kind: type[FgaBlip2], record_property: Any) -> None:
    """With one file of weights, the authors' network and processors and the adapter agree on prompts and pictures.

    The prompts are empty, cut by words and by pieces, quoted, accented, of several lines; the pictures are shrunk,
    enlarged and stretched, grey and of a palette.
    """
    variant = kind.spec.name.partition(".")[2]
    official = torch.tensor(RECORDED[variant])
    assert official.std(1).min() > 0.1  # pictures tell
    assert official.std(0).min() > 0.1  # so do prompts
    AGREE(record_property, kind.spec.name, RECORDED, scores(load(kind)), official, rtol=TOLERANCE)


def test_elements_are_those_of_the_authors_demonstration(load: Any, record_property: Any) -> None:
    """An element's score is what the demonstration gives, alone and as part of a mean."""
    official = torch.tensor(RECORDED["element"])  # [elements, pictures]
    alone, together = [], []
    for prompt, elements in CASE["ELEMENTS"]:
        prompts = [prompt] * len(IMAGES)
        alone += [load(FgaElement, elements=lambda _, e=element: [e]).score(IMAGES, prompts) for element in elements]
        every = load(FgaElement, elements=lambda _, e=elements: [*e, "a thing that is not there"])
        together.append(every.score(IMAGES, prompts).values)
    assert official.std(1).min() > 0.01
    found = torch.stack([one.values for one in alone])
    AGREE(record_property, "evalmuse.element", RECORDED, found, official, rtol=TOLERANCE)
    parts = official.split([len(elements) for _, elements in CASE["ELEMENTS"]])
    torch.testing.assert_close(torch.stack(together), torch.stack([p.mean(0) for p in parts]), rtol=TOLERANCE, atol=0)


def test_only_a_prompt_of_more_pieces_is_read_otherwise_as_a_whole() -> None:
    """The two official overall scores part where a prompt has more than 32 pieces, and only there."""
    short, whole = (torch.tensor(RECORDED[name]) for name in ("fga_blip2", "fga_blip2_whole"))
    apart = (short - whole).abs().amax(1)
    longer = [i for i, prompt in enumerate(CASE["PROMPTS"]) if prompt.count("zzyzx") or len(prompt) > 200]
    assert longer == [3, 6]
    assert apart[longer].min() > 0.01
    assert apart[[i for i in range(len(apart)) if i not in longer]].max() < 1e-5


CHANGES = {
    "crop": {"fit": "crop"},
    "bilinear": {"interpolation": "bilinear"},
    "no antialias": {"backend": "float", "antialias": False},
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


@pytest.mark.parametrize("change", [*CHANGES, "marks stay", "35 tokens", "mean of logits", "gelu", "no bias"])
def test_other_variants_do_not_pass(load: Any, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    reward = load(FgaBlip2)
    prompts = 3, 4  # one is too long, one has marks
    official = torch.tensor(RECORDED["fga_blip2"])[list(prompts)]
    if change in CHANGES:
        reward.preprocess = replace(reward.preprocess, **CHANGES[change])
    elif change == "marks stay":
        monkeypatch.setattr(evalmuse, "caption", lambda prompt: prompt)
    elif change == "35 tokens":
        reward.context = 35
    elif change == "mean of logits":
        monkeypatch.setattr(reward.network.itm_head, "forward", averaged(reward.network.itm_head))
    elif change == "gelu":
        from transformers.activations import QuickGELUActivation

        for layer in reward.network.vision.encoder.layers:
            layer.mlp.activation_fn = QuickGELUActivation()
    else:
        for layer in reward.network.vision.encoder.layers:
            layer.self_attn.qkv.bias.zero_()
    found = scores(reward, tuple(CASE["PROMPTS"][i] for i in prompts))
    assert ((found - official) / official).abs().max() > 100 * TOLERANCE


def averaged(head: nn.Linear) -> Any:
    """The head on the mean of all states that are queries', as transformers' retrieval model has it."""
    forward = head.forward
    return lambda states: forward(states)[:, : CASE["QUERIES"]].mean(1, keepdim=True).expand(-1, CASE["QUERIES"], -1)


def test_every_tensor_of_a_file_has_a_place(folder: Path) -> None:
    """Of an official file every tensor is used, or named as one that no score uses, and a missing one is refused."""
    tensors = torch.load(folder / "fga_blip2.pth")["model"]
    kept = FgaBlip2.converted(tensors)
    assert kept.keys() == build().state_dict().keys()
    parts = ("Qformer.cls.", "mask_proj.", "vision_proj.", "text_proj.", "temp", "Qformer.bert.embeddings.position_ids")
    unused = [key for key in tensors if key.startswith(parts)]
    assert len(kept) + len(unused) + CASE["DEPTH"] == len(tensors)  # two biases make one
    with pytest.raises(ValueError, match=r"1 not wanted \(extra\)"):
        fill("evalmuse.fga_blip2", build(), {**kept, "extra": torch.zeros(1)})
    del kept["qformer.layernorm.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(qformer.layernorm.bias\)"):
        fill("evalmuse.fga_blip2", build(), kept)


def test_the_published_size() -> None:
    """At full size the towers have the numbers that BLIP-2's paper gives them, and the file weighs what all do."""
    with torch.device("meta"):
        network: Any = FgaBlip2.build()
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in network.named_children()}
    assert sizes["vision"] == pytest.approx(986e6, rel=0.001)
    assert sizes["qformer"] + sizes["embeddings"] == pytest.approx(188e6, rel=0.02)
    assert network.vision.post_layernorm.eps == 1e-5  # of torch, where the layers inside have timm's
    assert network.vision.encoder.layers[0].layer_norm1.eps == 1e-6
    assert network.vision.embeddings.position_embedding.shape[1] == 26 * 26 + 1
    assert FgaBlip2.origin.megabytes == pytest.approx(4 * (sum(sizes.values()) + 1_200_000) / 1e6, abs=1)


def test_what_is_read_of_a_prompt() -> None:
    """Small letters, a blank for every mark, single blanks, no more than 50 words."""
    assert caption('  A "Red" CAT; (two)\n\n') == "a red cat two"
    assert caption("Don't [SEP], café?") == "don't [sep], café?"
    assert caption("") == ""
    assert caption("word " * 60) == " ".join(["word"] * 50)


def test_prompts_that_are_cut_are_named_once() -> None:
    """32 pieces with their ends are read without a word, 33 with a warning, and what follows changes nothing."""
    reward, whole, longer = FgaBlip2.tiny(), " ".join(["a"] * 30), " ".join(["a"] * 30 + ["dog"])
    expected = reward.score(IMAGES[:1], [whole]).values
    with pytest.warns(UserWarning, match="evalmuse.fga_blip2 reads 32 tokens of a prompt, got 33 in"):
        assert torch.equal(reward.score(IMAGES[:1], [longer]).values, expected)
    reward.score(IMAGES[:1], [longer])
    reads_on = FgaBlip2Whole.tiny()
    assert not torch.equal(reads_on.score(IMAGES[:1], [longer]).values, expected)
    words = " ".join(["a"] * 50)
    expected = reads_on.score(IMAGES[:1], [words]).values
    with pytest.warns(UserWarning, match="evalmuse.fga_blip2_whole reads 50 words of a prompt, got 51 in"):
        assert torch.equal(reads_on.score(IMAGES[:1], [words + " dog"]).values, expected)


def test_a_prompt_of_endless_pieces_is_scored() -> None:
    """50 words of more pieces than the network has places for are read as far as it has."""
    reward, prompt = FgaBlip2Whole.tiny(), " ".join(["qzvxw" * 15] * 12)
    assert len(reward.tokenizer(prompt)["input_ids"]) > evalmuse.PLACES
    assert reward.score(IMAGES[:1], [prompt]).values.isfinite().all()


def test_an_element_is_read_as_the_prompt_is() -> None:
    """Capitals and marks around an element do not keep it from being found, and blanks alone are none."""
    reward = FgaElement.tiny()
    ids = reward.tokens(["a red cube, a dog"])[0][0].tolist()
    reward.elements = lambda prompt: ['"Red cube!"', "a dog", "a", "...", "a cat"]
    assert reward.spans("", ids) == [(2, 4), (5, 7), (1, 2)]


def test_no_element_is_no_score() -> None:
    """Without an element in what is read there is NaN and a note, and the neighbours keep their scores."""
    reward = FgaElement.tiny()
    values, notes = reward.score(IMAGES[:3], ["a dog", "", "of the and"])
    assert values.isnan().tolist() == [False, True, True]
    assert notes == ["", *["the prompt has no element in the text that is read"] * 2]
    assert reward.score(IMAGES[:1], ["a dog"]).values.item() == pytest.approx(values[0].item(), rel=1e-5)


@pytest.mark.parametrize("kind", [FgaBlip2, FgaElement])
def test_pixels_stand_within_the_tolerance(load: Any, kind: type[FgaBlip2]) -> None:
    """On pictures of the recording `score_pixels` is not further from `score` than is stated, nor far nearer."""
    from torchvision.transforms.functional import pil_to_tensor

    reward, prompts = load(kind), [CASE["PROMPTS"][0]]
    images = [image.convert("RGB") for image in IMAGES]
    pixels = [reward.score_pixels(pil_to_tensor(image)[None] / 255, prompts) for image in images]
    off = (torch.cat(pixels) - reward.score(images, prompts * len(images)).values).abs().max().item()
    assert kind.tolerance / 100 < off < kind.tolerance


@pytest.mark.parametrize("kind", [FgaBlip2, FgaElement])
def test_gradient_is_that_of_finite_differences(kind: type[FgaBlip2]) -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = kind.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-4
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-6)


def test_no_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    """Where BERT's vocabulary is neither in the cache nor at hand, the error says what to do."""
    tiny = FgaBlip2.tiny()
    reward = FgaBlip2.of(tiny.network, preprocess=tiny.preprocess, vocabulary=tmp_path)
    with pytest.raises(RunFailed, match=r"evalmuse.fga_blip2 needs the vocabulary of .* evalmuse.fga_blip2@PATH"):
        reward.score(IMAGES[:1], ["a dog"])
