"""Structure: what a reward likes more than those who judged do, and whether its odds hold in a domain not fitted on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rwk.calibration.covariates import covariates
from rwk.calibration.evaluate import cross_fitted
from rwk.calibration.metrics import losses
from rwk.calibration.pairs import PairTable
from rwk.calibration.probe import FLOOR, Level, Probe, Result, Status, Subject, known, mean_of, skipped, told
from rwk.calibration.probe_accuracy import DRIFT
from rwk.calibration.statistics import Interval
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.temperature import Temperature

LEAST_PROMPTS = 10
"""Of a domain that style or temperatures are fitted in."""

STYLE = Probe(
    "structure.style",
    "Log-odds by one standard deviation of what two images differ in (saturation, brightness, contrast, sharpness, "
    "size) that the preferences add to the reward's own; below 0 the reward likes it more than those who judged. The "
    "value is the lowest.",
    f"Fails where an interval, after Bonferroni, lies below -{FLOOR}, warns where it lies below 0.",
    "log-odds",
)
LEFT_OUT = Probe(
    "structure.left_out",
    "Nats a pair that are lost in a domain when the temperature comes from all other domains in place of its own other "
    "prompts, where most are lost.",
    f"Fails where the loss with the others' temperature lies above ln 2, which is that of saying nothing; warns where "
    f"the interval of what is lost lies above 0 and the logarithms of the temperatures are more than {DRIFT} apart.",
    "nats a pair",
)


def structure(subject: Subject) -> Iterator[Result]:
    """The table of styles in the first domain, and each domain by what the others teach."""
    yield _style(subject)
    yield _left_out(subject)


def _style(subject: Subject) -> Result:
    table, rows = subject.pairs[0], subject.rows[0]
    if not table.decided.sum() > 0 or table.prompts < LEAST_PROMPTS:
        return skipped(STYLE, f"needs pairs of {LEAST_PROMPTS} prompts whose preference is known")
    looks = covariates(subject.domains[0].images)
    differences = {name: values[rows[:, 0]] - values[rows[:, 1]] for name, values in looks.items()}
    scaled = {name: of / np.sqrt((of**2).mean()) for name, of in differences.items() if (of**2).mean() > 1e-12}
    if not scaled or not (table.margin != 0).any():
        return skipped(STYLE, "images of a prompt look alike or score alike")
    styled = StyleControlled(covariates=list(scaled)).fit(
        PairTable(table.margin, table.label, prompt=table.prompt, weight=table.weight, tie=table.tie, covariates=scaled)
    )
    from scipy.stats import t

    reach = float(t.ppf(1 - 0.025 / len(scaled), table.prompts - 1))
    levels = []
    for name, beta in styled.beta_.items():
        error = reach * styled.errors_[name]
        levels.append(Level(name, Interval(beta, beta - error, beta + error, table.prompts)))
    worst = min(levels, key=lambda level: level.value.mean)
    highest = min(levels, key=lambda level: level.value.high)
    status: Status = "fail" if highest.value.high < -FLOOR else "warn" if highest.value.high < 0 else "pass"
    liked = [level.name for level in levels if level.value.high < 0]
    said = f"likes {', '.join(liked)} more than those who judged" if liked else "nothing is liked too much for certain"
    shown = worst if status == "pass" else highest
    return Result(STYLE, status, f"{shown.name}: {told(shown.value)}, {said}", shown.value, levels)


def _left_out(subject: Subject) -> Result:
    held = [
        (domain.name, table)
        for domain, table in zip(subject.domains, subject.pairs, strict=True)
        if table.decided.sum() > 0 and table.prompts >= LEAST_PROMPTS
    ]
    if len(held) < 2:
        return skipped(LEFT_OUT, f"needs two domains with pairs of {LEAST_PROMPTS} prompts")
    levels = []
    for name, table in held:
        kept = _decided(table)
        others = joined([table for other, table in held if other != name])
        elsewhere, here = Temperature().fit(others), Temperature().fit(kept)
        reused = losses(elsewhere.of(kept), kept.label)
        own = losses(cross_fitted(Temperature(), kept, seed=subject.seed), kept.label)
        ratio = _log_ratio(here, elsewhere)
        measures = {"loss": mean_of(reused, kept.prompt), "own loss": mean_of(own, kept.prompt)}
        if ratio is not None:
            measures["log temperature ratio"] = ratio
        levels.append(Level(name, mean_of(reused - own, kept.prompt, tests=len(held)), measures))
    levels = [level for level in levels if known(level.value)]
    if not levels:
        return skipped(LEFT_OUT, "the odds of some pairs are certain, so that no loss is finite")
    worst = max(levels, key=lambda level: (_order(level), level.value.mean))
    status: Status = ("pass", "warn", "fail")[_order(worst)]
    said = f"{worst.name}: {told(worst.value, 3)}"
    if status == "fail":
        said += f", the loss is {told(worst.measures['loss'])}, above that of saying nothing"
    return Result(LEFT_OUT, status, said, worst.value, levels)


def _order(level: Level) -> int:
    """0 to pass, 1 to warn, 2 to fail."""
    ratio = level.measures.get("log temperature ratio")
    if level.measures["loss"].low > math.log(2) + 1e-9:  # equal scores lose ln 2 to the last bit or two
        return 2
    return int(level.value.low > 0 and (ratio is None or abs(ratio.mean) > DRIFT))


def _log_ratio(here: Temperature, elsewhere: Temperature) -> Interval | None:
    errors = [fitted.fit_["se_log_temperature"] for fitted in (here, elsewhere)]
    spread = math.hypot(*errors)
    if not math.isfinite(spread) or min(here.temperature_, elsewhere.temperature_) <= 0:
        return None
    from scipy.stats import t

    ratio = math.log(here.temperature_ / elsewhere.temperature_)
    count = min(here.fit_["prompts"], elsewhere.fit_["prompts"])
    reach = float(t.ppf(0.975, count - 1)) * spread
    return Interval(ratio, ratio - reach, ratio + reach, count)


def _decided(table: PairTable) -> PairTable:
    return table.take(table.decided > 0)


def joined(tables: list[PairTable]) -> PairTable:
    """The pairs of several tables, without their slices."""
    margin, label, tie, weight = (
        np.concatenate([getattr(table, name) for table in tables]) for name in ("margin", "label", "tie", "weight")
    )
    return PairTable(margin, label, prompt=np.concatenate([t.prompt for t in tables]), tie=tie, weight=weight)
