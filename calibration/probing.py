"""All probes by family, and running them on a reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from rwk.calibration.probe import Result, Subject
from rwk.calibration.probe_accuracy import accuracy
from rwk.calibration.probe_adversarial import adversarial
from rwk.calibration.probe_agreement import agreement
from rwk.calibration.probe_consistency import consistency
from rwk.calibration.probe_edits import edits
from rwk.calibration.probe_optimisation import optimisation
from rwk.calibration.probe_prompts import prompts
from rwk.calibration.probe_structure import structure
from rwk.calibration.probe_tokens import tokens
from rwk.calibration.probe_uncertainty import uncertainty

FAMILIES: Mapping[str, Callable[[Subject], Iterator[Result]]] = {
    "accuracy": accuracy,
    "optimisation": optimisation,
    "edits": edits,
    "prompts": prompts,
    "adversarial": lambda subject: chain(adversarial(subject), tokens(subject)),
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
