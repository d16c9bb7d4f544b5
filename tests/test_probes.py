"""Probes: each catches a reward that is broken in its way, and none speaks against a sound one."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration import rewording
from rwk.calibration.edits import MUST_FALL, MUST_NOT_MOVE, MUST_NOT_RISE, Edit
from rwk.calibration.probe import Domain, Probe, Result, Subject, share_of
from rwk.calibration.probe_accuracy import accuracy
from rwk.calibration.probe_adversarial import adversarial, climb
from rwk.calibration.probe_edits import run, wrong_image
from rwk.calibration.probe_optimisation import optimisation
from rwk.calibration.probe_prompts import counterfactual, manner, prompts
from rwk.calibration.probing import FAMILIES, run_probes
from rwk.cli.probe import FAMILIES as CHOICES
from rwk.rewards.base import Reward, RewardSpec

CASE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("probe_case.py")))
COLOURS, SIZES, Fits = CASE["COLOURS"], CASE["SIZES"], CASE["Fits"]
colour_of, domain, subject = CASE["colour_of"], CASE["domain"], CASE["subject"]
EDITS = {
    f"{kind}.{edit.name}": edit
    for kind, edits in (("must_not_rise", MUST_NOT_RISE), ("must_fall", MUST_FALL), ("must_not_move", MUST_NOT_MOVE))
    for edit in edits
}


def edited(name: str, of: Subject) -> Result:
    """The result of the probe of that name, as one of the 27 of its family."""
    return run(of, Probe(name, "", "", ""), EDITS[name], tests=27, fitting=name.startswith("must_fall"))


def by_name(results: Sequence[Result]) -> dict[str, Result]:
    return {result.probe.name: result for result in results}


def test_nothing_speaks_against_a_sound_reward() -> None:
    """Over every family the sound reward gets no fail and no warning, and each value has its interval and clusters."""
    results = run_probes(subject(None, domain(), domain("other", seed=1)))
    assert {r.probe.name: r.reason for r in results if r.status in ("fail", "warn")} == {}
    assert len(results) == 8 + 8 + len(EDITS) + 1 + 6 + 4 + 3 + 3 + 2 + 2 + 4 + 3
    passed = [result for result in results if result.status == "pass"]
    assert len(passed) > 30
    for result in passed:
        assert result.value is not None
        assert result.value.low <= result.value.mean <= result.value.high or "must_not_move" in result.probe.name
        assert result.value.clusters >= 8


def saturation(pixels: Tensor, _: Sequence[str]) -> Tensor:
    return 30 * (pixels.amax(1) - pixels.amin(1)).mean((1, 2))


def edge(pixels: Tensor, _: Sequence[str]) -> Tensor:
    return 6 * torch.stack([pixels[..., 0], pixels[..., -1]]).mean((0, 2, 3))


def contrast(pixels: Tensor, _: Sequence[str]) -> Tensor:
    return 40 * pixels.mean(1).std((1, 2))


def sideways(pixels: Tensor, _: Sequence[str]) -> Tensor:
    half = pixels.shape[3] // 2
    return 20 * (pixels[..., :half].mean((1, 2, 3)) - pixels[..., half:].mean((1, 2, 3)))


def parity(pixels: Tensor, _: Sequence[str]) -> Tensor:
    return 3 * torch.sin(2e4 * pixels.mean((1, 2, 3)))


def checks(pixels: Tensor, _: Sequence[str]) -> Tensor:
    y, x = np.indices(tuple(pixels.shape[2:]))
    pattern = torch.from_numpy(np.where((x + y) % 2, 1.0, -1.0)).float()
    return 1000 * (pixels * pattern).mean((1, 2, 3))


BROKEN_BY_EDITS = {
    "must_not_rise.saturation": saturation,
    "must_not_rise.contrast": contrast,
    "must_not_rise.white_border": edge,
    "must_not_move.flip": sideways,
    "must_not_move.dither": parity,
}


@pytest.mark.parametrize("name", BROKEN_BY_EDITS)
def test_a_term_that_an_edit_exploits_is_found(name: str) -> None:
    """The edit's own probe fails, and its worst finding holds the two images with their own scores."""
    broken = subject(Fits(BROKEN_BY_EDITS[name]))
    result = edited(name, broken)
    assert result.status == "fail", result.reason
    worst = result.findings[0]
    scores = broken.score([worst.before, worst.after], [worst.prompt, worst.prompt_after])
    assert scores.tolist() == pytest.approx([worst.score_before, worst.score_after], abs=1e-5)
    assert len(result.findings) == SIZES.findings
    assert edited(name, subject()).status == "pass"


def test_a_score_that_damage_does_not_lower_is_found() -> None:
    """A reward of the mean colour alone does not see that tiles are shuffled; one that likes blur is raised by it."""

    def mean_colour(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        wanted = torch.tensor([COLOURS[colour_of(text) or "red"] for text in texts]) / 255
        return -10 * (pixels.mean((2, 3)) - wanted).abs().mean(1)

    def smooth(pixels: Tensor, _: Sequence[str]) -> Tensor:
        return -100 * (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3))

    assert edited("must_fall.shuffle", subject(Fits(mean_colour, weight=0))).status == "fail"
    assert edited("must_fall.blur", subject(Fits(smooth))).status == "fail"


def test_damage_that_first_raises_the_score_is_a_warning() -> None:
    """Where a mild dose raises the score and a strong one lowers it, the share of steps that raise it is told."""
    of = subject()
    held = of.domains[0]
    clean = {i.tobytes(): CASE["ideal"](colour_of(p)) for i, p in zip(held.images, held.prompts, strict=True)}
    mend = Edit("mend", lambda i, dose: clean[i.tobytes()] if dose == 1 else i.point(lambda _: 0), (1, 2), "dose {:g}")
    result = run(of, Probe("must_fall.mend", "", "", ""), mend)
    assert result.status == "warn", result.reason
    assert 0.2 < result.levels[-1].measures["steps that raise the score"].low <= 0.5
    assert result.findings[0].score_after > result.findings[0].score_before
    unordered = run(of, Probe("must_fall.mend", "", "", ""), mend._replace(severities=(2,)))
    assert unordered.status == "pass"


def test_a_dose_is_told_with_its_response() -> None:
    """Every severity is a level with a mean in units of the scale; a loved saturation rises with its dose."""
    result = edited("must_not_rise.saturation", subject(Fits(saturation)))
    means = [level.value.mean for level in result.levels]
    assert [level.name for level in result.levels] == [f"saturation times {s:g}" for s in (1.25, 1.5, 2, 3)]
    assert means == sorted(means)
    assert result.value == result.levels[-1].value


def test_a_reward_that_ignores_its_prompt_is_found() -> None:
    """Blind to the prompt, it fails the colour, the shuffled prompt and the wrong image; the sound one passes them."""

    def plain(pixels: Tensor, _: Sequence[str]) -> Tensor:
        return -10 * pixels.std((1, 2, 3))

    for reward, status in ((Fits(plain, weight=0), "fail"), (Fits(), "pass")):
        of = subject(reward)
        found = by_name(list(prompts(of)))
        assert found["prompt_counterfactual.colour"].status == status
        assert found["prompt_counterfactual.shuffled"].status == status
        assert wrong_image(of, 1).status == status
        assert found["prompt_counterfactual.relation"].status == "skip"


def test_images_that_are_known_to_fit_are_taken_with_prompts_that_are_known_to_be_false() -> None:
    """Given such images, prompts are made false of them; one that gold says is still true does not count."""
    colours = list(COLOURS) * 3
    texts = [f"a {colour} patch {i}" for i, colour in enumerate(colours)]

    def judge(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.array(["red" in text for text in prompts], dtype=np.float64)  # to whom everything is red

    def to_red(prompt: str) -> str:
        return prompt.replace(str(colour_of(prompt)), "red" if "blue" in prompt else "grey")

    of, images = subject(), [CASE["ideal"](colour) for colour in colours]
    of.ideal = Domain("ideal", images, texts, np.ones(len(texts)), judge=judge)
    result = counterfactual(of, "colour", "another colour", to_red)
    assert result.value is not None
    assert result.value.clusters == sum(colour != "blue" for colour in colours)


def test_words_alone_do_not_pass_for_sight() -> None:
    """A taste for some words gives high accuracy on one swap and none against the grey image: the control finds it."""

    def red_is_best(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return torch.tensor([5.0 * ("red" not in text) for text in texts]) - pixels.std((1, 2, 3))

    def to_red(prompt: str) -> str | None:
        return None if "red" in prompt else prompt.replace(str(colour_of(prompt)), "red")

    result = counterfactual(subject(Fits(red_is_best, weight=0)), "colour", "red", to_red)
    assert result.levels[0].measures["accuracy"].mean == 1
    assert result.levels[0].measures["accuracy blind"].mean == 1
    assert result.status == "fail"
    assert result.value is not None
    assert result.value.mean == pytest.approx(0.5, abs=0.1)  # what is left of 0 is rounding


def test_a_change_of_manner_that_turns_margins_is_found() -> None:
    """A reward that is upside down for prompts in capitals fails that probe alone, and the turned pairs are shown."""

    def shouting(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        loud = torch.tensor([float(text.isupper()) for text in texts])
        return 40 * loud * pixels.std((1, 2, 3))

    found = by_name(list(prompts(subject(Fits(shouting)))))
    assert found["prompt_invariance.case"].status == "fail"
    assert found["prompt_invariance.case"].findings[0].prompt_after.isupper()
    assert found["prompt_invariance.punctuation"].status == "pass"
    assert found["prompt_invariance.politeness"].status == "pass"


def test_prompts_are_reworded_in_one_fact() -> None:
    """Each rewording changes its own fact and nothing else, and gives None where there is none to change."""
    prompt = "a red circle to the left of two blue squares"
    assert {name: reword(prompt) for name, reword in rewording.COUNTERFACTUALS.items()} == {
        "colour": "a orange circle to the left of two blue squares",
        "object": "a red triangle to the left of two blue squares",
        "number": "a red circle to the left of three blue squares",
        "relation": "a red circle to the right of two blue squares",
        "attributes": "a blue circle to the left of two red squares",
    }
    assert {reword("something else") for reword in rewording.COUNTERFACTUALS.values()} == {None}
    assert rewording.number("three dogs") == "two dogs"
    assert [rewording.thing(f"two {many}") for many in ("crosses", "triangles", "buses")] == [
        "two rings",
        "two crosses",
        "two trains",
    ]


def test_pixels_that_an_attack_can_move_are_found() -> None:
    """A taste for checks of one pixel lets every worst image overtake within one grey level; random signs do not."""
    (broken,), (sound,) = (list(adversarial(subject(reward))) for reward in (Fits(checks), Fits()))
    assert (broken.status, sound.status) == ("fail", "pass")
    first = broken.levels[0]
    assert first.measures["gain, units of the scale"].low > 1
    assert abs(first.measures["gain by random signs"].mean) < 0.5
    assert broken.findings[0].score_after > broken.findings[0].score_before
    assert sound.value is not None
    assert sound.value.mean == 0
    assert sound.value.high > 0


def test_an_attack_stays_within_its_radius() -> None:
    """No value of a pixel moves by more grey levels than allowed, and the score rises."""
    of = subject(Fits(checks))
    image, prompt = of.domains[0].images[0], of.domains[0].prompts[0]
    for radius in (1, 4):
        moved = climb(Fits(checks), image, prompt, radius, of)
        distance = np.abs(np.asarray(moved).astype(int) - np.asarray(image).astype(int)).max()
        assert distance == radius
        before, after = of.score([image, moved], [prompt] * 2)
        assert after > before


def test_a_reward_without_gradient_is_not_attacked() -> None:
    """The probe says why it was skipped."""
    (result,) = adversarial(subject(Plain()))
    assert (result.status, result.value) == ("skip", None)
    assert "has no gradient" in result.reason


class Plain(Reward):
    """The same score for every image, from a class that is no `PixelReward`."""

    spec = RewardSpec("plain", "", 0, 1, "n/a", "")

    @classmethod
    def tiny(cls) -> Plain:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        return torch.full([len(images)], 0.5)


def test_a_constant_reward_is_found() -> None:
    """It fails the spread and the accuracy, and everything that needs a scale is skipped with that reason."""
    found = by_name(run_probes(subject(Plain())))
    assert found["optimisation.spread"].status == "fail"
    assert found["accuracy.in_domain"].status == "fail"
    assert found["must_fall.blur"].status == "skip"
    assert "there is no scale" in found["must_fall.blur"].reason
    assert "pass" not in {found[name].status for name in found if name.startswith(("must", "optimisation.eta"))}


def upside_down(where: str) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """A term that turns the sound score round for prompts that hold a word."""

    def term(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        sound = Fits().score_pixels(pixels, texts)
        return -2 * sound * torch.tensor([float(where in text) for text in texts])

    return term


def test_a_reward_that_is_upside_down_is_found() -> None:
    """It fails accuracy and the gain of best of 4, in its own domain or out of it, wherever it is so."""
    inside, outside = domain(), domain("other", seed=1, repeat=1)
    outside = Domain("other", outside.images, [f"odd {p}" for p in outside.prompts], outside.gold, outside.fits)
    everywhere, elsewhere = (subject(Fits(upside_down(where)), inside, outside) for where in ("patch", "odd"))
    found = by_name([*accuracy(everywhere), *optimisation(everywhere)])
    assert {found[name].status for name in ("accuracy.in_domain", "optimisation.eta_in_domain")} == {"fail"}
    found = by_name([*accuracy(elsewhere), *optimisation(elsewhere)])
    assert found["accuracy.in_domain"].status == found["optimisation.eta_in_domain"].status == "pass"
    for name in ("accuracy.out_of_domain", "optimisation.eta_out_of_domain", "optimisation.retention"):
        assert found[name].status == "fail", name


def test_a_slice_without_skill_is_found_by_name() -> None:
    """A reward that is upside down for one category fails the slices, which name it; the others do not suffer."""
    found = by_name(list(accuracy(subject(Fits(upside_down("blue")), domain(repeat=2)))))
    assert found["accuracy.slices"].status == "fail"
    assert "category blue" in found["accuracy.slices"].reason
    assert found["accuracy.in_domain"].status == "pass"


def test_confidence_that_does_not_travel_is_a_warning() -> None:
    """Scores that are three times as large out of domain without being better are over-confident there."""

    def louder(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        scale = torch.tensor([4.0 * ("odd" in text) for text in texts])
        return scale * Fits().score_pixels(pixels, texts)

    inside, other = domain(repeat=3), domain("other", seed=1, repeat=3)
    outside = Domain("other", other.images, [f"odd {p}" for p in other.prompts], other.gold, other.fits)
    for reward, status in ((Fits(louder), "warn"), (Fits(), "pass")):
        found = by_name(list(accuracy(subject(reward, inside, outside))))
        assert found["accuracy.temperature_shift"].status == status, found["accuracy.temperature_shift"].reason


def test_odds_that_do_not_hold_are_found() -> None:
    """Where a third of the prompts are eight times as loud and less often right, no temperature fits; bins show it."""

    def boast(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        loud = torch.tensor([float("the" in text) for text in texts])
        return loud * (7 * Fits().score_pixels(pixels, texts) + 8 * torch.sin(1e4 * pixels.mean((1, 2, 3))))

    for reward, status in ((Fits(boast), "warn"), (Fits(), "pass")):
        found = by_name(list(accuracy(subject(reward, domain(repeat=2)))))["accuracy.calibration"]
        assert found.status == status, found.reason
        confidences = [float(level.name.rpartition(" ")[2]) for level in found.levels]
        assert confidences == sorted(confidences)
        outside = [
            not level.measures["perfect probabilities"].low <= level.value.mean <= band.high
            for level in found.levels
            for band in [level.measures["perfect probabilities"]]
        ]
        assert (sum(outside) >= 3) == (status == "warn")


def test_intervals_of_all_slices_cover_at_once() -> None:
    """They are wider than those of one slice alone, and each slice has its temperature."""
    of = subject(None, domain(repeat=3))
    found = by_name(list(accuracy(of)))["accuracy.slices"]
    table = of.pairs[0]
    for level in found.levels:
        part = table.slices["category"] == level.name.rpartition(" ")[2]
        hit = (table.margin[part] > 0).astype(np.float64)
        alone = share_of(hit, table.prompt[part])
        assert level.value.mean == pytest.approx(alone.mean)
        assert level.value.high - level.value.low > alone.high - alone.low
        assert level.measures["temperature"].low < level.measures["temperature"].mean


def test_other_rewards_stand_beside_the_accuracy() -> None:
    """Each domain tells what the other rewards get on the same pairs."""
    of = subject(None, domain(), domain("other", seed=1))
    of.others = {"opposite": Fits(weight=-1)}
    found = by_name(list(accuracy(of)))
    for name in ("accuracy.in_domain", "accuracy.out_of_domain"):
        level = found[name].levels[0]
        assert level.measures["opposite"].mean == pytest.approx(1 - level.value.mean)


def test_selecting_harder_that_makes_worse_is_found() -> None:
    """Where each prompt has one wrong image that the reward loves, gold falls as n grows and the turn is seen."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (30, 8))
    gold = scores + rng.normal(0, 0.05, scores.shape)
    loved = np.argmax(scores, 1)
    gold[np.arange(30), loved] = -0.5
    for truth, status in ((gold, "fail"), (scores, "pass")):
        of = Subject(Given(scores), [given(scores, truth)], SIZES)
        found = by_name(list(optimisation(of)))
        assert found["optimisation.over_optimisation"].status == status


def test_the_gain_of_best_of_4_is_normalised() -> None:
    """Selecting by gold itself keeps all of the gain, by noise about none, and the value has an interval."""
    rng = np.random.default_rng(1)
    gold = rng.uniform(0, 1, (40, 8))
    for scores, eta in ((3 * gold + 1, 1.0), (rng.uniform(0, 1, gold.shape), 0.0)):
        found = by_name(list(optimisation(Subject(Given(scores), [given(scores, gold)], SIZES))))
        value = found["optimisation.eta_in_domain"].value
        assert value is not None
        assert value.mean == pytest.approx(eta, abs=0.25 if eta == 0 else 1e-9)
        assert value.clusters == 40
    assert found["optimisation.eta_in_domain"].status == "fail"


def test_spread_and_intraclass_correlation_are_those_of_the_scores() -> None:
    """Prompts that differ far more than their images have a correlation near 1; flat prompts lie below the floor."""
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 1, (40, 6)) * np.where(np.arange(40) < 24, 1e-3, 1.0)[:, None]
    for offset, low, high in ((100.0, 0.99, 1.0), (0.0, -0.3, 0.3)):
        moved = scores + offset * rng.normal(0, 1, (40, 1))
        found = by_name(list(optimisation(Subject(Given(moved), [given(moved, None)], SIZES))))["optimisation.spread"]
        assert found.status == "warn"
        assert found.levels[0].value.mean == pytest.approx(0.6)
        assert low <= found.levels[0].measures["intraclass correlation"].mean <= high


class Given(Plain):
    """Scores that were written down, read from the first pixel of an image."""

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.scores = torch.from_numpy(scores.reshape(-1).copy()).float()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        pixels = [image.getpixel((0, 0)) for image in images]
        return self.scores[[red * 256 + green for red, green, _ in pixels]]


def given(scores: np.ndarray, gold: np.ndarray | None) -> Domain:
    """A domain of [P, n] images for `Given`."""
    count, n = scores.shape
    images = [Image.new("RGB", (2, 2), (i // 256, i % 256, 0)) for i in range(count * n)]
    texts = [f"p{i // n}" for i in range(count * n)]
    return Domain("in domain", images, texts, None if gold is None else gold.reshape(-1))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_keeps_what_it_must(name: str) -> None:
    """Each edit gives an RGB image, leaves its input as it was, is the same each time, and changes pixels."""
    edit: Edit = EDITS[name]
    image = domain().images[0]
    before = image.tobytes()
    made = [edit.change(image, severity) for severity in edit.severities]
    assert image.tobytes() == before
    assert {one.mode for one in made} == {"RGB"}
    assert [one.tobytes() for one in made] == [edit.change(image, s).tobytes() for s in edit.severities]
    assert (made[-1].tobytes() != before) == (name != "must_not_move.webp")
    if name != "must_not_move.resize":
        assert {one.size for one in made} == {image.size}


def test_a_share_of_all_or_nothing_has_an_interval() -> None:
    """20 prompts without a miss are no proof: the interval is Wilson's, not a point."""
    found = share_of(np.ones(60), np.repeat(np.arange(20), 3))
    assert (found.mean, found.high, found.clusters) == (1, 1, 20)
    assert found.low == pytest.approx(0.8389, abs=1e-4)


def test_wrong_calls_are_told() -> None:
    """An unknown family, a domain whose columns do not fit, and no domain at all are errors that say so."""
    with pytest.raises(ValueError, match="probes must be of accuracy.*got 'accurate'"):
        run_probes(subject(), ["accurate"])
    with pytest.raises(ValueError, match="prompts of all its 1 images, got 2"):
        Domain("x", [Image.new("RGB", (2, 2))], ["a", "b"])
    with pytest.raises(ValueError, match="at least one domain"):
        Subject(Fits(), [])
    assert list(FAMILIES) == list(CHOICES)
    assert manner(subject(), "x", "x", lambda _: None).status == "skip"
    assert math.isnan(subject(Plain()).scale.value)
