"""What can be chosen about a ladder of GRPO, harvest, fine-tuning and harder prompts; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rwk.policy_opt.configs import Grpo

Difficulty = Literal["success", "clauses"]


def _field(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Ladder(Grpo):
    """GRPO, a harvest of the best images, fine-tuning on them, harder prompts; and again.

    Of the draws that `steps` stand for each climb has the same number, and its last ones are the harvest. So it draws
    as many images as GRPO with the same `steps`.
    """

    climbs: int = _field(2, "Times that GRPO, harvest and fine-tuning follow one another.")
    harvest: int = _field(8, "Draws at the end of a climb whose best images are learnt, in place of updates of GRPO.")
    keep: int = _field(1, "Best images of a harvested group, by what all rewards agree on, that are learnt.")
    harvest_epochs: int = _field(1, "Passes over the harvest.")
    harvest_batch: int = _field(32, "Harvested images per update.")
    harder: float = _field(0.5, "Share of a climb's prompts, the hardest, that the next climb draws for; 1 keeps all.")
    harder_by: Difficulty = _field(
        "success",
        "How hard a prompt is: by the success that the run had with it when it last drew for it, others in the middle; "
        "or by its clauses.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("climbs", "harvest", "harvest_epochs", "harvest_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.steps % (self.climbs * self.num_iterations) or self.harvest >= self.draws // self.climbs:
            raise ValueError(
                f"steps must be a multiple of climbs * num_iterations, and a climb have more draws than its harvest, "
                f"got {self.steps} steps, {self.climbs} climbs, num_iterations {self.num_iterations} and a harvest of "
                f"{self.harvest}."
            )
        if not 0 < self.harder <= 1:
            raise ValueError(f"harder must lie above 0 and up to 1, got {self.harder}.")
        if self.harder_by not in get_args(Difficulty):
            raise ValueError(f"harder_by must be one of {', '.join(get_args(Difficulty))}, got {self.harder_by!r}.")
        if self.then:
            raise ValueError("then is of a single run of GRPO, whose updates are counted; leave it out of a ladder.")
        if not 1 <= self.keep < self.group_size:
            raise ValueError(f"keep must lie in 1..group_size - 1, got {self.keep}; the worst is no model.")
