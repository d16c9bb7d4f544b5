"""How tokens are drawn: guidance, temperature and truncation, and what is trained of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GuidanceMode = Literal["off", "matched", "matched_detach_uncond", "cond_only"]


@dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from."""

    guidance: float = 1.0
    """Classifier-free guidance weight w in u + w (c - u); 1 draws from the conditional model alone."""
    temperature: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens that holds this much probability; 1 keeps all."""
    mode: GuidanceMode = "matched"
    """What is trained of what is drawn.

    `matched` is the guided distribution, from which is drawn. `matched_detach_uncond` is that too, with the gradient
    through the conditional branch alone: half the cost, and no longer the gradient of the likelihood. `cond_only` is
    the conditional model alone, which is biased, since it is not what is drawn from. `off` says that there is no
    guidance in either.
    """

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")
        if not self.guidance >= 0:
            raise ValueError(f"guidance must be at least 0, got {self.guidance}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}; 0 keeps every token.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.mode not in get_args(GuidanceMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(GuidanceMode))}, got {self.mode!r}.")
        if self.mode == "off" and self.guidance != 1:
            raise ValueError(f"mode off must go with guidance 1, got {self.guidance}; leave one of them out.")
