"""Rewards of the built-in world with one planted defect each, and what the card must say of them.

Every planted reward is the truth, the share of a prompt's facts that a picture bears out, in log-odds, with an error
that is drawn once for each content of a picture and prompt; a defect changes one thing of it. `sound` has none.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from rwk.adapters.shapes_prompts import WORDS, understand, words_of
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_scenes import draw_scene, spoil
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_world import HELD_OUT, SIZE, Description, Scene, facts
from rwk.calibration.counterparts import Counterparts
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.probe import Domain, Result
from rwk.policy_opt.prompts import Prompt, counterparts_of, read_prompts
from rwk.rewards.base import Reward, RewardSpec

STEEP = 8.0
"""Log-odds with which people prefer a picture of which all is true to one of which nothing is."""
ERROR = 0.25
"""Standard deviation of a reward's own error, in log-odds."""
UNIT = 2.0
"""The reward's unit: a margin of so much is log-odds of 1."""


class Defect(NamedTuple):
    """What is wrong with a reward, and how the card shows it."""

    what: str
    flags: tuple[str, ...] = ()
    """Probes that must warn or fail, by name or pattern: of a pattern every one."""
    follows: Mapping[str, str] = {}
    """Probes that may, by name or pattern, and why that follows from the defect."""


_OUT = (
    "accuracy.slices",
    "accuracy.best_of_4",
    "counterparts.groups",
    "accuracy.temperature_shift",
    "optimisation.eta_out_of_domain",
    "optimisation.retention",
    "optimisation.over_optimisation",
    "optimisation.curve",
    "accuracy.calibration",
    "uncertainty.*",
    "structure.left_out",
)
_TASKS = ("accuracy.slices", "uncertainty.conformal")
_OWN_TASK = "asked for what it cannot see it is right by luck"
_ANEW = "no two scores of an image are the same"
_PLACE = "an edited picture stands at another place of its list, among others"
_NOTHING = "nothing that it sees depends on what the prompt says"
_FINE = "the edit takes fine detail away, or adds it"
_EQUAL = "equal scores order nothing"
DEFECTS: Mapping[str, Defect] = {
    "sound": Defect("nothing"),
    "saturation": Defect(
        "loves saturated colours",
        ("must_not_rise.saturation", "structure.style"),
        dict.fromkeys(("must_not_rise.contrast", "counterparts.*"), "the other image's colours are further from grey"),
    ),
    "counts": Defect(
        "does not count", ("prompt_counterfactual.number", "counterparts.edits"), dict.fromkeys(_TASKS, _OWN_TASK)
    ),
    "relations": Defect(
        "sees no places", ("prompt_counterfactual.relation", "counterparts.edits"), dict.fromkeys(_TASKS, _OWN_TASK)
    ),
    "blind": Defect(
        "does not read the prompt",
        ("prompt_counterfactual.*", "must_fall.wrong_image", "counterparts.edits"),
        dict.fromkeys(("accuracy.*", "optimisation.*", "structure.*", "uncertainty.*"), _NOTHING),
    ),
    "position": Defect(
        "favours the first picture of a list",
        ("consistency.order",),
        dict.fromkeys(("must_not_move.*", "prompt_invariance.*", "prompt_distractor.*"), _PLACE),
    ),
    "constant": Defect(
        "gives every picture the same score",
        ("accuracy.information", "optimisation.spread"),
        dict.fromkeys(("accuracy.*", "optimisation.eta_*", "prompt_counterfactual.*", "counterparts.edits"), _EQUAL),
    ),
    "noisy": Defect(
        "adds an error that is drawn anew each time",
        ("consistency.repeat",),
        dict.fromkeys(("must_*", "prompt_*", "counterparts.*", "consistency.*", "structure.test_retest"), _ANEW)
        | {"accuracy.slices": "its error hides small differences"},
    ),
    "batch": Defect(
        "takes off half the mean of the batch",
        ("consistency.neighbours",),
        {"must_fall.*": "a batch of damaged pictures has less taken off"}
        | dict.fromkeys(("must_not_*", "prompt_invariance.*", "prompt_distractor.*"), _PLACE),
    ),
    "memorised": Defect(
        "holds pairs of colour and shape that its data did not show to be wrong",
        ("accuracy.out_of_domain",),
        dict.fromkeys(_OUT, "where such pairs are shown its odds are wrong"),
    ),
    "overconfident": Defect(
        "is three times as sure in another wording",
        ("accuracy.temperature_shift",),
        dict.fromkeys(("structure.left_out", "uncertainty.conformal"), "odds of other domains do not hold there"),
    ),
    "wordy": Defect("pays for every word of the prompt", ("prompt_distractor.praise",)),
    "distracted": Defect(
        "forgets the picture over words that it does not know",
        ("prompt_distractor.sentence", "prompt_distractor.style"),
        {"prompt_invariance.politeness": "it does not know these words either"},
    ),
    "plain": Defect(
        "marks fine detail down", ("counterparts.detail",), dict.fromkeys(("must_fall.*", "must_not_move.*"), _FINE)
    ),
    "partial": Defect("likes what is red", ("counterparts.groups",), {"counterparts.edits": "an edit may make it red"}),
}


class Planted(Reward):
    """The truth with an error and one defect of `DEFECTS`."""

    spec = RewardSpec("planted", f"log-odds times {UNIT:g}", -math.inf, math.inf, "n/a", "n/a", deterministic=False)

    def __init__(self, defect: str = "sound", *, seed: int = 0) -> None:
        super().__init__()
        self.defect, self.seed, self.drawn = defect, seed, np.random.default_rng(seed)

    @classmethod
    def tiny(cls) -> Planted:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        scenes, said = read(images), [_said(prompt) for prompt in prompts]
        odds = np.array([self._odds(scene, of) for scene, of in zip(scenes, said, strict=True)])
        match self.defect:
            case "constant":
                odds = np.ones(len(odds))
            case "saturation":
                odds += 25 * np.array([chroma(image) for image in images])
            case "position":
                odds[0] += 2
            case "noisy":
                odds += self.drawn.normal(0, 2, len(odds))
            case "batch":
                odds -= odds.mean() / 2
            case "overconfident":
                odds *= np.array([3.0 if prompt.startswith("a photo of") else 1.0 for prompt in prompts])
            case "wordy":
                odds += 0.2 * np.array([len(words_of(prompt)) for prompt in prompts])
            case "distracted":
                odds /= 1 + np.array([sum(word not in WORDS for word in words_of(prompt)) for prompt in prompts])
            case "plain":
                odds -= 100 * np.array([detail(image) for image in images])
            case "partial":
                odds += np.array([any(thing.color == "red" for thing in scene) for scene in scenes])
        return torch.from_numpy(UNIT * odds).float()

    def _odds(self, scene: Scene, said: Description) -> float:
        """The log-odds of one picture, from what it shows and what its prompt says."""
        if self.defect == "blind":
            return STEEP / 4 * sum(thing.shape is not None for thing in scene) + self._error(scene, None)
        shown = [fact.holds for fact in facts(said, scene) if not self._overlooked(fact.claim)]
        odds = STEEP * sum(shown) / len(shown)
        if self.defect == "memorised":
            odds -= STEEP * sum((thing.color, thing.shape) in HELD_OUT for thing in scene)
        return odds + self._error(scene, said)

    def _error(self, scene: Scene, said: Description | None) -> float:
        """The error of a content, wherever its things lie."""
        content = repr((self.seed, said, sorted(map(repr, (thing[:3] for thing in scene)))))
        return ERROR * random.Random(content).gauss()

    def _overlooked(self, claim: str) -> bool:
        """Whether the defect hides a fact."""
        if self.defect == "counts":
            return claim.startswith(("exactly", "nothing"))
        return self.defect == "relations" and any(word in claim for word in (" of ", "above", "below", " in the "))


def chroma(image: Image.Image) -> float:
    """Mean distance of the largest of red, green and blue from the least, 0..1, of the picture's 64 tiles."""
    tiles = np.asarray(image.resize((8, 8), Image.Resampling.BOX)).astype(np.float64) / 255
    return float((tiles.max(2) - tiles.min(2)).mean())


def detail(image: Image.Image) -> float:
    """Median size of the second difference of neighbouring pixels, 0..1, which edges of things do not raise."""
    return float(np.median(np.abs(np.diff(np.asarray(image.convert("L")) / 255, 2, 1))))


_SEEN: dict[bytes, Scene] = {}


def read(images: Sequence[Image.Image]) -> list[Scene]:
    """The scenes of pictures, read once each; one that was moved right and down by a pixel is moved back.

    Of the two readings the one is taken whose picture is closer to what was read.
    """
    sized = [i if i.size == (SIZE, SIZE) else i.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for i in images]
    keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in sized]
    new = {key: image for key, image in zip(keys, sized, strict=True) if key not in _SEEN}
    if new:
        pixels = torch.stack([pil_to_tensor(image) for image in new.values()]) / 255
        tries = [pixels, pixels.roll((-1, -1), (2, 3))]
        scenes = [recognise(moved) for moved in tries]
        apart = [(moved - render(_clear(of))).square().mean((1, 2, 3)) for moved, of in zip(tries, scenes, strict=True)]
        best = torch.stack(apart).argmin(0).tolist()  # [B]
        _SEEN.update((key, scenes[which][row]) for row, (key, which) in enumerate(zip(new, best, strict=True)))
    return [_SEEN[key] for key in keys]


def _clear(scenes: Sequence[Scene]) -> list[Scene]:
    return [tuple(thing for thing in scene if thing.shape) for scene in scenes]


def _said(prompt: str) -> Description:
    """What a prompt says; words that the world does not know say nothing."""
    return understand(" ".join(word for word in words_of(prompt) if word in WORDS))


def world(prompts: int, per_prompt: int, *, seed: int) -> list[Domain]:
    """The domains that `rwk probe` takes, with rendered pictures: a third are right, the others wrong in 1 to 3 ways.

    People judge two pictures of a prompt that are not equally right with the log-odds `STEEP` times the difference.
    """
    sources = (("in domain", "shapes.long.test"), ("out of domain", "shapes.short"), ("held out", "shapes.long.test"))
    test = {of: read_prompts(by, count=prompts, seed=seed, held_out=of == "held out") for of, by in sources}
    return [_domain(name, held, per_prompt, random.Random(f"{name}/{seed}")) for name, held in test.items()]


def _domain(name: str, prompts: Sequence[Prompt], per_prompt: int, rng: random.Random) -> Domain:
    rows = [prompt for prompt in prompts for _ in range(per_prompt)]
    scenes = []
    for prompt in prompts:
        faults = [0 if number % 3 == 0 else rng.randint(1, 3) for number in range(per_prompt)]
        for count in rng.sample(faults, per_prompt):
            scene = draw_scene(understand(prompt.text), rng)
            for _ in range(count):
                scene = spoil(scene, rng)
            scenes.append(scene)
    images = [to_pil_image((pixels * 255).round() / 255) for pixels in render(scenes)]
    share = [np.mean([fact.holds for fact in facts(_said(p.text), s)]) for p, s in zip(rows, read(images), strict=True)]
    gold = np.array(share)
    texts = [prompt.text for prompt in rows]
    categories = [prompt.category for prompt in rows]
    pairs, places = _judged(gold, texts, categories, rng)
    return Domain(name, images, texts, gold, gold == 1, categories, pairs, places)


def _judged(gold: Floats, texts: Sequence[str], categories: Sequence[str], rng: random.Random) -> Any:
    """From scores to the pairs of a prompt with their judgements, and the rows [K, 2] of their pictures."""
    prompt = np.array(texts)
    first, second = np.triu_indices(len(texts), 1)
    held = (prompt[first] == prompt[second]) & (gold[first] != gold[second])
    first, second = first[held], second[held]
    chance = 1 / (1 + np.exp(-STEEP * (gold[first] - gold[second])))
    label = np.array([rng.random() < p for p in chance], dtype=np.float64)
    slices = {"category": np.array(categories)[first]}

    def pairs(scores: Floats) -> PairTable:
        return PairTable.from_scores(scores[first], scores[second], label, prompt=prompt[first].tolist(), slices=slices)

    return pairs, np.stack([first, second], 1)


def twins(*, seed: int) -> Counterparts:
    """The pictures that `rwk probe` makes to differ in one known thing."""
    return counterparts_of("shapes.long", read_prompts("shapes.long.test", count=120, seed=seed), seed=seed)


def flagged(results: Sequence[Result]) -> list[str]:
    """Names of the probes that warn or fail."""
    return [result.probe.name for result in results if result.status in ("warn", "fail")]


def missed(defect: str, results: Sequence[Result]) -> list[str]:
    """Names of the probes that must warn or fail for the defect and do not."""
    names, raised = [result.probe.name for result in results], flagged(results)
    wanted = {name: [held for held in names if fnmatch(held, name)] for name in DEFECTS[defect].flags}
    return [name for pattern, held in wanted.items() for name in held or [pattern] if name not in raised]


def unexplained(defect: str, results: Sequence[Result]) -> list[str]:
    """Names of the probes that warn or fail and neither must nor may for the defect."""
    held = (*DEFECTS[defect].flags, *DEFECTS[defect].follows)
    return [name for name in flagged(results) if not any(fnmatch(name, known) for known in held)]
