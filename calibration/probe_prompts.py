"""Prompts: whether a score falls when the prompt becomes false, and stays when only its manner changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rwk.calibration.pairs import Floats
from rwk.calibration.probe import (
    Domain,
    Finding,
    Level,
    Probe,
    Result,
    Status,
    Subject,
    known,
    quantile_of,
    share_of,
    skipped,
    told,
)
from rwk.calibration.rewording import COUNTERFACTUALS, MANNERS, Rewording

LEAST = 8
"""Prompts that an edit must apply to."""
FLIPS = 0.5
"""Change of a margin, in units of the scale, that a change of manner may cause in 1 pair of 20."""

_FALSE = (
    "Share of fitting images whose score falls more than that of a grey image when the prompt becomes {}; what the "
    "words alone are worth to the reward is thereby taken away."
)
_GATE = (
    "Fails where the interval, after Bonferroni over the family, reaches 0.5: the reward sees no difference; warns "
    "where that of the share which scores higher with its own prompt does."
)
_STAY = "What 95 % of the changes of a margin between two images of a prompt stay below, when both prompts are put {}."
STAY_GATE = f"Fails where the interval lies above {FLIPS} units of the scale, warns where the value does."


def prompts(subject: Subject) -> Iterator[Result]:
    """A probe for each false prompt, the shuffled prompt, and each change of manner."""
    tests = len(COUNTERFACTUALS) + 1
    for name, reword in COUNTERFACTUALS.items():
        yield counterfactual(subject, name, f"another {name}", reword, tests=tests)
    yield counterfactual(subject, "shuffled", "the prompt of another image", _of_another(subject), tests=tests)
    for name, (words, reword) in MANNERS.items():
        yield manner(subject, name, words, reword)


def _of_another(subject: Subject) -> Rewording:
    """Gives each prompt the next one of the domain."""
    held = list(dict.fromkeys((subject.ideal or subject.domains[0]).prompts))
    after = dict(zip(held, [*held[1:], *held[:1]], strict=True))
    return lambda prompt: after[prompt] if len(held) > 1 else None


def _reworded(domain: Domain, rows: Any, reword: Rewording, most: int) -> tuple[Any, list[str], list[str]]:
    """The rows whose prompts can be changed, their prompts, and what these become."""
    changed = [(row, domain.prompts[row], other) for row in rows if (other := reword(domain.prompts[row]))]
    held = [(row, prompt, other) for row, prompt, other in changed if other != prompt][:most]
    return np.array([row for row, _, _ in held], dtype=np.intp), [p for _, p, _ in held], [o for _, _, o in held]


def _still_true(domain: Domain, held: Any, others: Sequence[str]) -> Any:
    """[M] bool, whether an image fits the other prompt as well, so far as gold can be asked."""
    if domain.judge is None or domain.gold is None or not len(held):
        return np.zeros(len(held), dtype=bool)
    return domain.judge([domain.images[row] for row in held], others) >= domain.gold[held]


def _unfit(subject: Subject, texts: Sequence[str]) -> str | None:
    if not subject.reward.spec.needs_prompt:
        return "the reward takes no prompt"
    count = len(set(texts))
    return f"applies to {count} prompts with fitting images, needs {LEAST}" if count < LEAST else None


def counterfactual(subject: Subject, name: str, words: str, reword: Rewording, *, tests: int = 1) -> Result:
    """Whether images that fit their prompt score higher with it than with a false one, and grey images do not."""
    probe = Probe(f"prompt_counterfactual.{name}", _FALSE.format(words), _GATE, "share of images")
    domain = subject.ideal or subject.domains[0]
    every = range(len(domain.images)) if subject.ideal else subject.chosen(len(domain.images), fitting=True)
    rows = [row for row in every if domain.fitting[row]]
    held, right, wrong = _reworded(domain, rows, reword, subject.sizes.edited)
    wronged = np.flatnonzero(~_still_true(domain, held, wrong))
    held, right, wrong = held[wronged], [right[i] for i in wronged], [wrong[i] for i in wronged]
    if (without := _unfit(subject, right)) is not None:
        return skipped(probe, without)
    images = [domain.images[row] for row in held]
    grey = [Image.new("RGB", image.size, "gray") for image in images]
    true, false = subject.score(images, right), subject.score(images, wrong)
    words_alone = np.nan_to_num(subject.score(grey, right) - subject.score(grey, wrong))  # no score: no difference
    groups = domain.groups[held]
    margins = (true - false - words_alone, true - false, words_alone)
    value, accuracy, control = (share_of(_wins(margin), groups, tests=tests) for margin in margins)
    if not known(value):
        return skipped(probe, "false prompts get no score")
    level = Level(words, value, {"accuracy": accuracy, "accuracy blind": control})
    status: Status = "fail" if value.low <= 0.5 else "warn" if accuracy.low <= 0.5 else "pass"
    reason = f"{told(value)} fall; accuracy {accuracy.mean:.2f}, blind {control.mean:.2f}"
    worst = np.argsort(np.nan_to_num(true - false, nan=np.inf))[: subject.sizes.findings]
    found = [
        Finding(images[i], images[i], right[i], wrong[i], float(true[i]), float(false[i]), f"the prompt, with {words}")
        for i in worst
    ]
    return Result(probe, status, reason, value, [level], found if status != "pass" else ())


def _wins(margin: Floats) -> Floats:
    """[N] 1 where the margin is above 0, half where it is 0, NaN where there is none."""
    return np.where(np.isnan(margin), np.nan, (np.sign(margin) + 1) / 2)


def manner(subject: Subject, name: str, words: str, reword: Rewording) -> Result:
    """How far margins between two images of a prompt move when its manner changes, and how often they turn."""
    probe = Probe(f"prompt_invariance.{name}", _STAY.format(words), STAY_GATE, "units of the scale")
    domain = subject.domains[0]
    rows = subject.chosen(subject.sizes.edited)
    held, _, others = _reworded(domain, rows, reword, len(rows))
    if not subject.reward.spec.needs_prompt:
        return skipped(probe, "the reward takes no prompt")
    if not subject.scale.value > 0:
        return skipped(probe, "it gives all images of a prompt the same score, so there is no scale")
    after = subject.score([domain.images[row] for row in held], others)
    return moved(subject, probe, words, held, others, after)


def moved(subject: Subject, probe: Probe, words: str, held: Any, others: Sequence[str], after: Floats) -> Result:
    """The result of a probe of margins that words must not move.

    Args:
        words: what is done to the prompts.
        held: [M] rows of the first domain.
        others: [M] their prompts with it.
        after: [M] their scores then.
    """
    domain = subject.domains[0]
    pairs = _within(domain.groups[held])
    if len(pairs) == 0:
        return skipped(probe, "needs two images of a prompt")
    before = subject.scores[0][held]
    one, two = pairs.T
    margin, then = before[one] - before[two], after[one] - after[two]
    change = np.abs(then - margin) / subject.scale.value
    clusters = domain.groups[held][one]
    value = quantile_of(change, clusters, 0.95, subject.sizes, subject.seed)
    if not known(value):
        return skipped(probe, "such prompts get no score, or are fewer than 2")
    turned = np.where(np.isnan(change), np.nan, (np.sign(then) != np.sign(margin)).astype(np.float64))
    status: Status = "fail" if value.low > FLIPS else "warn" if value.mean > FLIPS else "pass"
    level = Level(words, value, {"pairs that turn": share_of(turned, clusters)})
    found = []
    if status != "pass":
        for place in np.argsort(-np.nan_to_num(change))[: subject.sizes.findings]:
            a, b = one[place], two[place]
            pair, prompt = (domain.images[held[a]], domain.images[held[b]]), domain.prompts[held[a]]
            said = f"the margin between these two images, the prompt {words}"
            found.append(Finding(*pair, prompt, others[a], float(margin[place]), float(then[place]), said))
    return Result(probe, status, f"{words}: {told(value)}", value, [level], found)


def _within(groups: Any) -> Any:
    """[K, 2] places of all pairs of one group."""
    first, second = np.triu_indices(len(groups), 1)
    same = groups[first] == groups[second]
    return np.stack([first[same], second[same]], 1)
