"""What can be chosen about an optimisation by DPO, REBEL or rejection sampling, and by GRPO; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rwk.policy_opt.grpo_config import Grpo as Grpo
from rwk.policy_opt.settings import (
    KL_EVERY,
    PER_DRAW,
    WATCH_EVERY,
    DpoLoss,
    Optimisation,
    PairRule,
    Reference,
    check,
    choice,
    setting,
)


@dataclass(frozen=True)
class Rounds(Optimisation):
    """What the algorithms have in common that draw, score, choose, learn from what was chosen, and begin again."""

    rounds: int = setting(16, "Times that the current policy draws anew.")
    prompts_per_round: int = setting(128, "Prompts drawn for in a round, a new choice each; 0 takes all.")
    prompts_per_draw: int = setting(64, PER_DRAW)
    min_margin: float = setting(
        0.0,
        "A pair is kept when its rewards differ by more than this; an image of rft, when it beats the worst of its "
        "group so.",
    )
    min_confidence: float = setting(
        0.0,
        "A pair is kept when people prefer its better image with at least this probability by `rwk calibrate`; 0 is "
        "off.",
    )
    epochs: int = setting(1, "Passes over what was chosen in a round.")
    batch_size: int = setting(
        32,
        "Prompts, over all processes, that make one update with all their pairs, or images of rft; each prompt counts "
        "the same, however many those are.",
    )
    kl_every: int = setting(1, KL_EVERY)
    watch_every: int = setting(1, WATCH_EVERY)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "prompts_per_draw", "epochs", "batch_size"):
            check(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        for name in ("prompts_per_round", "min_margin"):
            check(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        check(0 <= self.min_confidence < 1, "min_confidence", "lie in 0..1", self.min_confidence)

    @property
    def margins_count(self) -> bool:
        return self.min_confidence > 0

    @property
    def learnt(self) -> int:
        """Images of a group that are learnt, at most."""
        raise TypeError(f"no images to learn are known of {type(self).__name__}.")


@dataclass(frozen=True)
class Pairwise(Rounds):
    """What the algorithms have in common that learn from pairs."""

    pairs: PairRule = setting(
        "best_worst", "Which images of a group are paired: best_worst, top_bottom of pair_k on each side, or all."
    )
    pair_k: int = setting(
        2,
        "Images on each side of top_bottom; each of the best is paired with each of the worst.",
        of="pairs=top_bottom",
    )
    reference: Reference = setting(
        "round", "What log-ratios are to: the policy that drew in the round, or, fixed, the one the run began with."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("pairs", self.pairs, PairRule)
        choice("reference", self.reference, Reference)
        if self.pairs == "top_bottom":
            check(1 <= self.pair_k <= self.group_size // 2, "pair_k", "lie in 1..group_size / 2", self.pair_k)

    @property
    def learnt(self) -> int:
        return {"best_worst": 2, "top_bottom": 2 * self.pair_k, "all": self.group_size}[self.pairs]


@dataclass(frozen=True)
class Dpo(Pairwise):
    """Direct preference optimisation: draw, score, pair, and learn to prefer the better of each pair."""

    beta: float = setting(0.1, "How dearly a step away from the reference must be paid; larger stays closer.")
    loss_type: DpoLoss = setting("sigmoid", "Form of the loss, by TRL's name.")
    label_smoothing: float = setting(0.0, "Share of labels that loss robust takes to be wrong.", of="loss_type=robust")
    soft_labels: bool = setting(
        False,
        "Label a pair with the probability by `rwk calibrate` that people prefer its better image, instead of 1; of "
        "loss sigmoid.",
    )
    sft_weight: float = setting(0.0, "Weight of the likelihood of the winners that is added to the loss.")
    margin_offset: float = setting(
        0.0,
        "Log-odds by which the policy is to prefer the better image beforehand, for each unit of the reward's margin: "
        "DPO with an offset; of loss sigmoid.",
    )
    margin_weight: bool = setting(
        False, "Weigh each pair by its margin over the mean margin of the round; of loss sigmoid."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.beta > 0, "beta", "be above 0", self.beta, "at 0 the preferences have no weight")
        check(self.sft_weight >= 0, "sft_weight", "be at least 0", self.sft_weight)
        check(0 <= self.label_smoothing < 0.5, "label_smoothing", "lie in 0..0.5", self.label_smoothing)
        choice("loss_type", self.loss_type, DpoLoss)
        check(self.margin_offset >= 0, "margin_offset", "be at least 0", self.margin_offset)
        own = [name for name in ("soft_labels", "margin_offset", "margin_weight") if getattr(self, name)]
        if own and (self.loss_type != "sigmoid" or self.sft_weight):
            raise ValueError(
                f"{own[0]} must go with loss_type sigmoid and no sft_weight, got {self.loss_type} and "
                f"{self.sft_weight}; leave one out."
            )
        if self.soft_labels and len(own) > 1:
            raise ValueError(f"soft_labels know of the margin already, got {own[1]} too; leave one out.")

    @property
    def margins_count(self) -> bool:
        return self.soft_labels or super().margins_count


@dataclass(frozen=True)
class Rebel(Pairwise):
    """Regression to relative rewards: draw, score, pair, and learn by how much the better of each pair is better."""

    eta: float = setting(
        20.0, "Nats by which a round is to make an image likelier for each unit of reward; smaller stays closer."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.eta > 0, "eta", "be above 0", self.eta, "at 0 the rewards have no weight")


@dataclass(frozen=True)
class Rft(Rounds):
    """Rejection-sampling fine-tuning: draw, score, and learn to draw the best of each group."""

    keep: int = setting(1, "Best images of a group that are learnt.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.keep < self.group_size, "keep", "lie in 1..group_size - 1", self.keep, "the worst is no model")

    @property
    def learnt(self) -> int:
        return self.keep
