"""The built-in world: what is said of a scene, drawn of it, and read off its picture."""

from __future__ import annotations

import random
import re

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from rwk.adapters.shapes_generator import BEGIN, LLAMA, ShapesLlama
from rwk.adapters.shapes_prompts import FAMILIES, PARTS, WORDS, describe, prompts, understand, withheld, word, words_of
from rwk.adapters.shapes_render import render, stencils
from rwk.adapters.shapes_scenes import draw_scene, spoil
from rwk.adapters.shapes_train import agreement, llama_logits, teach
from rwk.adapters.shapes_verifier import Verifier, recognise
from rwk.adapters.shapes_world import HELD_OUT, WITHHELD, Clause, Description, Thing, facts
from rwk.policy_opt.generator import GENERATORS
from rwk.policy_opt.sampling import Sampling

CATEGORIES = [(family, category) for family, categories in FAMILIES.items() for category in categories]


@pytest.fixture(scope="module")
def shipped() -> ShapesLlama:
    return GENERATORS.load("shapes.llama")  # type: ignore[return-value]


@pytest.mark.parametrize(("family", "category"), CATEGORIES)
def test_a_prompt_is_understood_as_it_was_meant(family: str, category: str) -> None:
    """Wording and reading are inverse for every category of both families."""
    rng = random.Random(category)
    for held_out in (False, True) * 50:
        meant = describe(category, rng, held_out=held_out)
        assert understand(word(meant, family, rng)) == meant


@pytest.mark.parametrize(("family", "category"), CATEGORIES)
def test_verifier_is_exact_on_rendered_scenes(family: str, category: str) -> None:
    """The scene that was drawn is the scene that is seen, and every fact of its prompt holds, for 100 % of 200."""
    rng = random.Random(category)
    described = [describe(category, rng) for _ in range(200)]
    scenes = [draw_scene(description, rng) for description in described]
    seen = recognise((render(scenes) * 255).round() / 255)
    assert [set(scene) for scene in seen] == [set(scene) for scene in scenes]
    assert all(fact.holds for d, scene in zip(described, seen, strict=True) for fact in facts(d, scene))


def test_verifier_agrees_after_the_tokenizer(shipped: ShapesLlama) -> None:
    """At least 97 % of scenes are read alike after they went through 64 codes; the shipped weights reach more."""
    assert agreement(shipped.vq, count=300, seed=1) >= 0.97


def test_the_generator_can_be_trained() -> None:
    """A few steps make pictures likelier after their captions, and after none."""
    generator = ShapesLlama.tiny()
    logits_of, texts = llama_logits(generator), ["a red circle"] * 32 + ["a photo of two small rings"] * 32
    tokens = torch.randint(4, [64, 64], generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def surprise(dropped: bool) -> float:
        logits = logits_of(texts[24:40], tokens[24:40], [dropped] * 16)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[24:40].flatten()).item()

    before = surprise(False), surprise(True)
    assert before[0] != before[1]
    assert list(teach(generator.module, logits_of, texts, tokens, steps=12, rate=3e-3, seed=0)) == [11]
    assert surprise(False) < before[0] - 0.1
    assert surprise(True) < before[1] - 0.1
    rollout = generator.sample(texts[:1], per_prompt=2, seed=0, sampling=Sampling())
    told = logits_of([texts[0]] * 2, rollout.tokens, [False] * 2).log_softmax(2).gather(2, rollout.tokens[..., None])
    assert torch.allclose(told[..., 0], rollout.logprobs, atol=1e-4)  # what is taught is what is drawn by


def test_verifier_judges_images_of_other_sizes_and_says_what_is_wrong() -> None:
    """An enlarged picture scores as the small one, and the note names the fact that fails."""
    scene = (Thing("circle", "red", "large", 0, 0), Thing("square", "blue", "small", 0, 1))
    image = to_pil_image(render([scene])[0])
    for shown in (image, image.resize((480, 480)), image.resize((100, 60))):
        scores = Verifier().score([shown] * 2, ["a red circle left of a blue square", "a red circle above a square"])
        assert scores.values[0] == 1
        assert scores.notes == ["", "not: a red circle above a square"]


@pytest.mark.parametrize("prompt", ["a red cat", "", "the red", "a circle left of", "Ein Kreis", "a 猫"])
def test_prompt_from_elsewhere_gets_no_score(prompt: str) -> None:
    """What the world cannot judge is NaN with a reason, not 0."""
    scores = Verifier().score([to_pil_image(render([()])[0])], [prompt])
    assert scores.values.isnan().all()
    assert scores.notes[0].startswith("no fact to check: ")


def test_smudge_is_a_thing_of_no_kind() -> None:
    """Noise in a quadrant counts as something, but never as a shape."""
    pixels = render([(Thing("circle", "red", "large", 0, 0),)])
    noise = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    pixels[0, :, 24:, 24:] = noise
    assert set(recognise(pixels)[0]) == {Thing("circle", "red", "large", 0, 0), Thing(None, None, None, 1, 1)}


@pytest.mark.parametrize(
    ("prompt", "failing"),
    [
        ("a red circle", "nothing else"),
        ("a blue square", None),
        ("two circles", "exactly two circles"),
        ("a small red circle", "exactly one small red circle"),
        ("a red circle right of a blue square", "a red circle right of a blue square"),
        ("a red circle in the top right", "a red circle in the top right"),
        ("a yellow circle and a blue square", "shows a yellow circle"),
    ],
)
def test_facts_fail_one_by_one(prompt: str, failing: str | None) -> None:
    """Each claim is checked: number, colour, size, relation, place, and that there is nothing else."""
    scene: tuple[Thing, ...] = (Thing("circle", "red", "large", 0, 0), Thing("square", "blue", "small", 0, 1))
    scene = scene if failing else scene[1:]
    wrong = [fact.claim for fact in facts(understand(prompt), scene) if not fact.holds]
    assert failing in wrong if failing else not wrong


def test_family_never_names_held_out_pairs_and_test_prompts_are_its_own() -> None:
    """Training, test and held-out prompts do not overlap."""
    train = {p.text for p in prompts("shapes.long", 400, seed=0)}
    test = {p.text for p in prompts("shapes.long.test", 200, seed=0)}
    held_out = {p.text for p in prompts("shapes.long.test", 60, seed=0, held_out=True)}
    assert not train & test
    assert not (train | test) & held_out
    pairs = {text: {(c.color, c.shape) for c in understand(text).clauses} for text in train | test | held_out}
    assert all((pairs[text] & HELD_OUT == set()) == (text not in held_out) for text in pairs)


def test_narrow_prompts_withhold_one_value_of_each_factor() -> None:
    """The narrow family, its tests and its short wording name none of them, each part one; none overlap."""
    names = ["shapes.narrow", "shapes.narrow.test", *(f"shapes.narrow.{part}" for part in PARTS)]
    found = {name: [prompt.text for prompt in prompts(name, 60, seed=0)] for name in names}
    assert len({text for texts in found.values() for text in texts}) == 60 * len(names)
    for name, texts in found.items():
        part = name.rpartition(".")[2]
        wanted = {part} if part in WITHHELD else set()
        assert {withheld(understand(text)) for text in texts} == {frozenset(wanted)}
        assert all(text.startswith("a photo of") == (part == "short") for text in texts)
    assert all(re.search("cyan", text) for text in found["shapes.narrow.color"])
    assert all(re.search("ring", text) for text in found["shapes.narrow.shape"])
    assert all(re.search("four", text) for text in found["shapes.narrow.number"])
    assert all(re.search("directly below", text) for text in found["shapes.narrow.relation"])
    assert {prompt.category for prompt in prompts("shapes.narrow", 60, seed=0)} == set(FAMILIES["shapes.long"])


def test_prompts_are_drawn_by_seed_and_cover_every_category() -> None:
    """The same seed gives the same prompts; another gives others; categories come in turn."""
    first = prompts("shapes.short", 60, seed=0)
    assert first == prompts("shapes.short", 60, seed=0)
    assert first != prompts("shapes.short", 60, seed=1)
    assert {prompt.category for prompt in first} == set(FAMILIES["shapes.short"])


@pytest.mark.parametrize(
    "family", ["shapes", "shapes.medium", "shapes.long.tests", "shapes.long.test.test", "shapes.narrow.size"]
)
def test_unknown_family_is_refused(family: str) -> None:
    """The error names the families that there are."""
    with pytest.raises(ValueError, match=r"shapes\.long, shapes\.short"):
        prompts(family, 3, seed=0)


def test_more_prompts_than_a_family_holds_are_refused() -> None:
    """No prompt is repeated to fill a list."""
    with pytest.raises(ValueError, match="holds no 99999 different prompts"):
        prompts("shapes.short", 99999, seed=0)


def test_spoiled_scene_mostly_breaks_the_prompt_and_stays_drawable() -> None:
    """A spoilt scene is another scene; about seven in ten no longer fit a fully described prompt."""
    rng = random.Random(0)
    described = [describe(category, rng) for _, category in CATEGORIES * 40]
    scenes = [draw_scene(description, rng) for description in described]
    spoilt = [spoil(scene, rng) for scene in scenes]
    assert all(set(a) != set(b) for a, b in zip(scenes, spoilt, strict=True))
    broken = [not all(f.holds for f in facts(d, s)) for d, s in zip(described, spoilt, strict=True)]
    assert 0.6 < sum(broken) / len(broken) < 0.8
    assert [set(scene) for scene in recognise(render(spoilt))] == [set(scene) for scene in spoilt]


def test_every_word_of_a_prompt_has_an_id() -> None:
    """The generator can read whatever the families say."""
    for family in FAMILIES:
        assert all(set(words_of(prompt.text)) <= set(WORDS) for prompt in prompts(family, 200, seed=3))
    assert LLAMA["vocab_size"] == BEGIN + 1 + len(WORDS)


def test_generator_refuses_a_word_that_it_does_not_know() -> None:
    """It names the word and says what to write instead."""
    with pytest.raises(ValueError, match="knows only the .* words of its world, got 'cat'"):
        ShapesLlama.tiny().sample(["a photo of a cat"], seed=0)


def test_stencils_are_told_apart() -> None:
    """No two stencils of different kind cover the same pixels, else the verifier could not be exact."""
    kinds, masks = stencils()
    gaps = torch.cdist(masks.flatten(1), masks.flatten(1))
    assert (gaps + torch.eye(len(kinds)) * 99).min() > 0.5


def test_a_clause_in_words() -> None:
    """Articles, numbers and plurals are English."""
    assert Clause(1, "cross", "orange").words() == "an orange cross"
    assert Clause(3, "cross", None, "small").words() == "three small crosses"
    assert understand("Two crosses, and a ring!") == Description((Clause(2, "cross"), Clause(1, "ring")))
