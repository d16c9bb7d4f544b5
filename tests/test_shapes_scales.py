"""The generator of the world that draws map after map: its tokenizer, who sees what, and that it can be taught."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from rwk.adapters.shapes_generator import BEGIN, CODES, ShapesLlama
from rwk.adapters.shapes_prompts import prompts
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_scales import ShapesScales, middles
from rwk.adapters.shapes_scales_train import begin_from, scales_logits
from rwk.adapters.shapes_scales_vq import ENDS, SIGN, ScalesVQ, code_embeddings
from rwk.adapters.shapes_train import agreement, random_scene, save_half, teach, train_vq
from rwk.adapters.shapes_verifier import Verifier
from rwk.adapters.shapes_vq import ShapesVQ
from rwk.policy_opt import generator as generators


@pytest.fixture(scope="module")
def shipped() -> ShapesScales:
    return generators.load("shapes.scales")  # type: ignore[return-value]


def test_codes_by_hand() -> None:
    """The first map has the signs of the mean, and each further one those of what is left at its side."""
    vq = ScalesVQ(32)
    latents = torch.full([1, 9, 8, 8], 2 * SIGN)
    latents[:, 4:] *= -1
    latents[:, 0, :4, :4] = -2 * SIGN  # the channel's mean stays above 0
    codes = vq.codes_of(latents)[0]
    assert codes[0] == 0b1111
    assert codes[1:5].tolist() == [0b1110, 0b1111, 0b1111, 0b1111]
    vectors = code_embeddings()[codes][None]
    assert torch.allclose(vectors.norm(dim=2), torch.ones(1, 85))
    left = [(latents - vq.sum_of(vectors[:, :end])).abs().max().item() / SIGN for end in ENDS]
    assert left == pytest.approx([3, 2, 1, 0], abs=1e-5)


def test_a_map_looks_like_the_maps_before_it() -> None:
    """At its own side, and the first like nothing; blown up, each code fills its patch."""
    vq = ScalesVQ(32)
    codes = torch.tensor([[5, 0, 511, 7, 300]])
    vectors = code_embeddings()[codes[0]]
    assert vq.outlook(codes[:, :0], 0).tolist() == [[[0.0] * 9]]
    assert torch.allclose(vq.outlook(codes[:, :1], 1), vectors[:1].expand(1, 4, 9))
    seen = vq.outlook(codes, 2)[0].view(4, 4, 9)
    assert torch.allclose(seen[:2, 2:], (vectors[0] + vectors[2]).expand(2, 2, 9))
    assert torch.equal(vq.sum_of(vectors[None, :4]), vq.sum_of(vectors[None, :1]))  # a map that is not whole


def test_a_code_stands_in_the_middle_of_its_patch() -> None:
    """Counted row by row of the finest map, whose own codes stand where they are."""
    found = middles(torch.device("cpu")).tolist()
    assert found[:5] == [36, 18, 22, 50, 54]
    assert found[21:] == list(range(64))


def test_it_begins_from_the_generator_that_draws_code_by_code() -> None:
    """Layers, words and what of the tokenizer fits; the codes' rows of the vocabulary are left out."""
    own, llama = ShapesScales.tiny(), ShapesLlama.tiny()
    begin_from(own, llama)
    words = llama.module.model.embed_tokens.weight[CODES:]
    assert torch.equal(own.module.model.embed_tokens.weight, words)
    assert torch.equal(own.module.model.layers[1].mlp.up_proj.weight, llama.module.model.layers[1].mlp.up_proj.weight)
    assert torch.equal(own.vq.decoder[1].first.weight, llama.vq.decoder[1].first.weight)
    assert own.prompt_ids("a red circle")[-1] < len(words)
    assert torch.allclose(own.module.places.weight.mean(0), words[BEGIN - CODES], atol=0.01)


def test_it_can_be_taught(tmp_path: Path) -> None:
    """Some steps make pictures likelier with their caption and without; saved in half precision, it is found again."""
    generator = ShapesScales.tiny()
    logits_of, texts = scales_logits(generator), ["a photo of a red circle"] * 64
    tokens = torch.randint(4, [64, 85], generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def surprise(dropped: bool) -> float:
        logits = logits_of(texts[:8], tokens[:8], [dropped] * 8)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:8].flatten()).item()

    before = surprise(False), surprise(True)
    assert list(teach(generator.module, logits_of, texts, tokens, steps=12, rate=3e-3, seed=0)) == [11]
    assert surprise(False) < before[0] - 0.1
    assert surprise(True) < before[1] - 0.1
    save_half(generator, tmp_path / "taught")
    found = generators.load(str(tmp_path / "taught"))
    assert isinstance(found, ShapesScales)
    assert next(found.module.parameters()).dtype == torch.float32
    prompt = ["a red circle"]
    kept = found.sample(prompt, per_prompt=4, seed=0).tokens == generator.sample(prompt, per_prompt=4, seed=0).tokens
    assert kept.float().mean() > 0.95


@pytest.mark.parametrize("kind", [ScalesVQ, ShapesVQ])
def test_a_tokenizer_learns_to_give_pictures_back(kind: type[ScalesVQ] | type[ShapesVQ]) -> None:
    """In training, where some maps are left out, and in the end with all of them."""
    torch.manual_seed(0)
    vq = kind(32)
    scenes = render([random_scene(random.Random(seed)) for seed in range(8)])
    with torch.no_grad():
        before = (vq.eval()(scenes) - scenes).abs().mean()
    train_vq(vq, steps=12, seed=0)
    assert not vq.training
    with torch.no_grad():
        error = (vq(scenes) - scenes).abs().mean()
        assert error < 0.8 * before
        assert torch.allclose(vq.decode(vq.encode(scenes)), vq(scenes).clamp(0, 1), atol=1e-4)


def test_some_maps_are_left_out_in_training_alone() -> None:
    """Of every second picture; so the first maps come to hold what matters most."""
    vq, scene = ScalesVQ(32), render([random_scene(random.Random(0))])
    with torch.no_grad():
        whole = vq.eval()(scene.expand(64, -1, -1, -1))
        torch.manual_seed(0)
        seen = vq.train()(scene.expand(64, -1, -1, -1))
    same = (seen - whole).abs().amax((1, 2, 3)) < 1e-6
    assert same[1::2].all()
    assert 0 < same[::2].sum() < 24  # one in four has all maps by chance


def test_the_shipped_generator_draws_what_is_asked(shipped: ShapesScales) -> None:
    """The tokenizer keeps what the verifier reads, and a good share of pictures is right."""
    assert agreement(shipped.vq, count=300, seed=1) >= 0.95
    asked = [prompt.text for prompt in prompts("shapes.short.test", 30, seed=1)]
    rollout = shipped.sample(asked, per_prompt=4, seed=0)
    right = Verifier().score(shipped.decode(rollout.tokens), rollout.prompts).values == 1
    assert right.float().mean() > 0.4


def test_half_a_picture_has_no_details(shipped: ShapesScales) -> None:
    """Of the first maps the picture is coarser, and what belongs to no whole map is not shown."""
    tokens = shipped.sample(["a large red circle"], seed=3).tokens
    whole = shipped.pixels(tokens)
    error = [(shipped.pixels(tokens[:, :end]) - whole).abs().mean().item() for end in ENDS]
    assert error[0] > error[1] > error[2] > error[3] == 0
    assert shipped.decode_partial(tokens[:, :20])[0].tobytes() == shipped.decode_partial(tokens[:, :5])[0].tobytes()


def test_a_folder_that_does_not_hold_it_is_one_sentence(shipped: ShapesScales, tmp_path: Path) -> None:
    """One of another generator, one that is not whole, and none; named with the generator and without."""
    save_half(ShapesScales.tiny(), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for name, told in {
        f"shapes.scales@{ShapesLlama.shipped}": r"shapes_llama does not hold a whole shapes\.scales: it lacks 'lm'",
        f"shapes.llama@{tmp_path}": r"does not hold a whole shapes\.llama: .*No such file",
        str(tmp_path / "cut"): r"cut does not hold a whole shapes\.scales: (?!.*cut).*deserializ",
    }.items():
        with pytest.raises(ValueError, match=told):
            generators.load(name)


def test_words_of_elsewhere_are_refused(shipped: ShapesScales) -> None:
    """Where they are drawn for, and before."""
    for ask in (shipped.check_prompt, lambda prompt: shipped.sample([prompt], seed=0)):
        with pytest.raises(ValueError, match=r"shapes\.scales knows only .* got 'cat'"):
            ask("a red cat")
    shipped.check_prompt("a red circle")
