"""What all algorithms can be told, and the values that a choice may have; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Schedule = Literal["constant", "linear", "cosine", "cosine_to_tenth"]
GrpoLoss = Literal["grpo", "gspo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo"]
Scale = Literal["group", "batch", "none"]
Baseline = Literal["group", "others"]
Resampling = Literal["none", "history", "alike", "dynamic"]
Aggregation = Literal["normalise", "sum", "log_odds", "lower_bound"]
Comparison = Literal["score", "win_rate"]
DpoLoss = Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard"]
PairRule = Literal["best_worst", "top_bottom", "all"]
KlEstimator = Literal["k1", "k2", "k3", "k3_plain"]
TokenWeights = Literal["none", "gcpo", "stage", "panw"]
Reference = Literal["round", "fixed"]
Floor = float | Literal["card"]


KL_EVERY = (
    "Steps of GRPO, or rounds of the others, between two measurements of the distance to the generator as it began; 0 "
    "measures none."
)
COMPILE = (
    "Draw by a step that torch.compile has made, on a GPU one CUDA graph; it takes a minute to make, and keeps the "
    "cache of a draw."
)
PER_DRAW = (
    "Prompts that are drawn for at once in one process; 0, of GRPO, takes all of a step, or half of them with "
    "score_meanwhile."
)
WATCH_EVERY = "Steps of GRPO, or rounds of the others, between two looks at the watched reward, where one is named."


def setting(default: Any, text: str, **more: Any) -> Any:
    """A field with its one sentence of help, from which the command line makes its option.

    Args:
        more: `of`, such as "pairs=top_bottom" or "beta": the setting without which, or without another value of which
            than 0, it does nothing.
    """
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Optimisation:
    """What all algorithms have in common."""

    learning_rate: float = setting(2e-4, "Peak learning rate of AdamW.")
    schedule: Schedule = setting(
        "constant",
        "How the learning rate falls from the warm-up to the end of the run: not, to 0, by a cosine to 0, or by one to "
        "a tenth. Rounds to come count as many updates as the present one; a part of a ladder is a run.",
    )
    warmup: int = setting(0, "Updates at the beginning of the run over which the learning rate rises from 0.")
    weight_decay: float = setting(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = setting(1.0, "Gradients longer than this are shortened to it.")
    group_size: int = setting(8, "Images drawn for one prompt.")
    aggregation: Aggregation = setting(
        "normalise",
        "How several rewards become one: normalise adds them standardised within their group, 2*NAME twice; sum adds "
        "them as they are, log_odds each over its temperature by `rwk calibrate`, as if they were independent "
        "witnesses; lower_bound takes their standardised mean less lower_k deviations. A single reward's temperature "
        "changes no advantage that is divided by the deviation of its group.",
    )
    lower_k: float = setting(
        1.0,
        "Deviations over the rewards that the aggregation lower_bound takes off their mean.",
        of="aggregation=lower_bound",
    )
    std_floor: tuple[Floor, ...] = setting(
        (),
        "For each reward in turn, in its own unit: a deviation within a group below this counts as this, of a single "
        "reward and in the aggregations normalise and lower_bound. A number, or card: the deviation of scoring one "
        "image twice, which `rwk probe` keeps in the reward's card; card alone is of every reward. [default: min_std]",
    )
    score_meanwhile: bool = setting(
        False,
        "Score the images of one draw on a thread while the next are drawn, of which prompts_per_draw makes several "
        "in a step or a round. A step of GRPO without prompts_per_draw, and a round that is one draw in its process, "
        "is drawn by halves. What is learnt stays the same.",
        switch=True,
    )
    from_pixels: bool = setting(
        False,
        "Hand images to differentiable rewards as tensors, where the generator made them, in place of pictures in main "
        "memory; `rwk info` says how far such a score may stand from the official one.",
        switch=True,
    )
    micro_batch: int = setting(
        0,
        "Images, or prompts with all their pairs, that go through the model at once in one process; 0 takes all of an "
        "update.",
    )
    gradient_checkpointing: bool = setting(
        False,
        "Compute each layer again in the backward pass, in place of keeping what it made: far less memory, a third "
        "more time.",
        switch=True,
    )
    torch_compile: bool = setting(False, COMPILE, switch=True)
    lora_rank: int = setting(0, "Rank of LoRA adapters on every linear layer; 0 trains all weights.")
    lora_alpha: float = setting(
        0.0, "Scale of the adapters is lora_alpha / lora_rank; 0 takes twice the rank.", of="lora_rank"
    )
    kl_every: int = setting(10, KL_EVERY)
    watch_every: int = setting(10, WATCH_EVERY)
    stop_on_divergence: bool = setting(
        False,
        "End the run where the watched reward falls while the reward rises, and keep the generator of the look at "
        "which the watched reward was highest.",
    )
    collapse: float = setting(
        0.5, "Alarm where entropy, or the variety within a group, falls below this share of its beginning; 0 is never."
    )
    save_every: int = setting(50, "Updates between two checkpoints; 0 writes none.")
    seed: int = setting(0, "Seed of the draws, of the order of the data and of the adapters.")

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            check(getattr(self, name) > 0, name, "be above 0", getattr(self, name))
        for name in (
            "warmup",
            "weight_decay",
            "micro_batch",
            "lora_rank",
            "lora_alpha",
            "save_every",
            "kl_every",
            "lower_k",
            "seed",
        ):
            check(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        check(self.watch_every >= 1, "watch_every", "be at least 1", self.watch_every)
        check(0 <= self.collapse < 1, "collapse", "lie in 0..1", self.collapse)
        check(self.group_size >= 2, "group_size", "be at least 2", self.group_size, "one image has nothing to beat")
        for floor in self.std_floor:
            good = floor == "card" if isinstance(floor, str) else floor >= 0
            check(good, "std_floor", "be at least 0, or card", floor)
        choice("schedule", self.schedule, Schedule)
        choice("aggregation", self.aggregation, Aggregation)

    @property
    def margins_count(self) -> bool:
        """Whether it is asked how sure a margin of the combined reward is."""
        return False

    @property
    def calibrated(self) -> bool:
        """Whether every reward needs a temperature."""
        return self.aggregation == "log_odds" or self.margins_count


def check(holds: bool, name: str, rule: str, value: object, why: str = "") -> None:
    """Raises ValueError, of the setting and its value, where a rule does not hold."""
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value}{'; ' + why if why else ''}.")


def choice(name: str, value: str, allowed: Any) -> None:
    """Raises ValueError for a value that is none of a Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}.")
