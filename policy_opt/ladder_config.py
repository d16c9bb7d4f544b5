"""What can be chosen about a ladder of GRPO, harvest, fine-tuning and harder prompts; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.settings import check, choice, setting

Difficulty = Literal["success", "clauses"]


@dataclass(frozen=True)
class Ladder(Grpo):
    """GRPO, a harvest of the best images, fine-tuning on them, harder prompts; and again.

    Of the draws that `steps` stand for each climb has the same number, and its last ones are the harvest. So it draws
    as many images as GRPO with the same `steps`.
    """

    climbs: int = setting(2, "Times that GRPO, harvest and fine-tuning follow one another.")
    harvest: int = setting(8, "Draws at the end of a climb whose best images are learnt, in place of updates of GRPO.")
    keep: int = setting(1, "Best images of a harvested group, by what all rewards agree on, that are learnt.")
    harvest_epochs: int = setting(1, "Passes over the harvest.")
    harvest_batch: int = setting(32, "Prompts whose harvested images make one update.")
    harder: float = setting(0.5, "Share of a climb's prompts, the hardest, that the next climb draws for; 1 keeps all.")
    harder_by: Difficulty = setting(
        "success",
        "How hard a prompt is: by the success that the run had with it when it last drew for it, others in the middle; "
        "or by its clauses.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("climbs", "harvest", "harvest_epochs", "harvest_batch"):
            check(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        if self.steps % (self.climbs * self.num_iterations) or self.harvest >= self.draws // self.climbs:
            raise ValueError(
                f"steps must be a multiple of climbs * num_iterations, and a climb have more draws than its harvest, "
                f"got {self.steps} steps, {self.climbs} climbs, num_iterations {self.num_iterations} and a harvest of "
                f"{self.harvest}."
            )
        check(0 < self.harder <= 1, "harder", "lie above 0 and up to 1", self.harder)
        choice("harder_by", self.harder_by, Difficulty)
        check(self.max_images == 0, "max_images", "be 0 in a ladder, which has to know its draws", self.max_images)
        if self.then:
            raise ValueError("then is of a single run of GRPO, whose updates are counted; leave it out of a ladder.")
        check(1 <= self.keep < self.group_size, "keep", "lie in 1..group_size - 1", self.keep, "the worst is no model")
