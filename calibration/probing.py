"""All probes by family, and running them on a reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from rwk.calibration.probe import Result, Subject
from rwk.calibration.probe_accuracy import accuracy
from rwk.calibration.probe_adversarial import adversarial
from rwk.calibration.probe_agreement import agreement
from rwk.calibration.probe_consistency import consistency
from rwk.calibration.probe_counterparts import counterparts
from rwk.calibration.probe_curve import curve
from rwk.calibration.probe_distractors import distractors
from rwk.calibration.probe_edits import edits
from rwk.calibration.probe_generators import generators
from rwk.calibration.probe_onset import onset
from rwk.calibration.probe_optimisation import optimisation
from rwk.calibration.probe_prompts import prompts
from rwk.calibration.probe_refined import refined
from rwk.calibration.probe_selection import selection
from rwk.calibration.probe_structure import structure
from rwk.calibration.probe_tokens import tokens
from rwk.calibration.probe_uncertainty import uncertainty

FAMILIES: Mapping[str, Callable[[Subject], Iterator[Result]]] = {
    "accuracy": lambda subject: chain(accuracy(subject), selection(subject), generators(subject)),
    "optimisation": lambda subject: chain(optimisation(subject), curve(subject), onset(subject)),
    "edits": edits,
    "prompts": lambda subject: chain(prompts(subject), distractors(subject)),
    "counterparts": counterparts,
    "adversarial": lambda subject: chain(adversarial(subject), tokens(subject), refined(subject)),
    "uncertainty": uncertainty,
    "structure": lambda subject: chain(agreement(subject), structure(subject)),
    "consistency": consistency,
}


def run_probes(subject: Subject, families: Sequence[str] = ()) -> list[Result]:
    """The results of every probe of these families, by default of all.

    Raises:
        ValueError: for an unknown family.
    """
    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"probes must be of {', '.join(FAMILIES)}, got {sorted(unknown)[0]!r}.")
    return [result for name, run in FAMILIES.items() if not families or name in families for result in run(subject)]
