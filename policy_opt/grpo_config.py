"""What can be chosen about GRPO; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rwk.policy_opt.recipes import changes
from rwk.policy_opt.settings import (
    PER_DRAW,
    Baseline,
    Comparison,
    GrpoLoss,
    KlEstimator,
    Optimisation,
    Resampling,
    Scale,
    TokenWeights,
    check,
    choice,
    setting,
)


@dataclass(frozen=True)
class Grpo(Optimisation):
    """Group relative policy optimisation: draw, score, and raise what beat its own group."""

    steps: int = setting(150, "Updates of the weights.")
    prompts_per_step: int = setting(16, "Prompts, over all processes, that are drawn for at once.")
    prompts_per_draw: int = setting(0, PER_DRAW)
    num_iterations: int = setting(1, "Updates made from one draw.")
    beta: float = setting(0.0, "Weight of the pull towards the reference.")
    kl_estimator: KlEstimator = setting(
        "k3",
        "What beta weighs, of d = log-ratio to the reference: k1, d; k2, d^2 / 2; k3, exp(-d) - 1 + d. k1 and k3 are "
        "multiplied by the ratio, so that all three pull along the gradient of the divergence; k3_plain is not, as in "
        "DeepSeek's and most code.",
        of="beta",
    )
    reference_every: int = setting(0, "Updates after which the reference of beta follows the policy; 0 is never.")
    reference_mix: float = setting(
        1.0, "Share of the policy that goes into the reference then; 1 replaces it.", of="reference_every"
    )
    ema: float = setting(
        0.0, "Decay of a running mean of the weights, which the run ends with and is judged by; 0 is off."
    )
    loss_type: GrpoLoss = setting(
        "grpo",
        "Form of the loss, by TRL's name; gspo weighs by the ratio of whole images. All are means over all images "
        "of an update, those of equal groups too, but with resampling dynamic; DAPO is dapo, dynamic and an "
        "epsilon_high.",
    )
    epsilon: float = setting(0.2, "The ratio of new to old probability counts down to 1 - epsilon.")
    epsilon_high: float | None = setting(None, "The ratio counts up to 1 + epsilon_high; none takes epsilon.")
    baseline: Baseline = setting(
        "group",
        "What a reward is held against: the mean of its group, or of the others in it; others with scale_rewards none "
        "is RLOO.",
    )
    scale_rewards: Scale = setting(
        "group",
        "What advantages are divided by: the deviation of the group, the batch, or none. Of rewards that were "
        "standardised one by one, as normalise and lower_bound do with several, and with diversity, always the batch.",
    )
    min_std: float = setting(
        1e-4, "A deviation below this, in reward units, counts as this, so that noise is not blown up."
    )
    advantage: Comparison = setting(
        "score",
        "What is held against the group: the score, or win_rate, the mean probability by `rwk calibrate` that people "
        "prefer an image to another of its group.",
    )
    gate: float = setting(
        0.0,
        "Scale the advantages of a group by min(1, deviation / (gate * T)), T the reward's temperature by `rwk "
        "calibrate`, so that groups that differ by noise count less; at 0.25 a margin of the floor is 56 to 44; 0 is "
        "off.",
    )
    token_weights: TokenWeights = setting(
        "none",
        "Which tokens of an image count more: gcpo, those that others hang on; stage, those that good and bad images "
        "do not share, which feel less of beta too; panw, those that are drawn with few others, as coarse scales are.",
    )
    importance_cap: float = setting(
        0.0,
        "Weigh each token by its probability when it is learnt over that when it was drawn, counted up to this; makes "
        "up for half precision, and for guidance that is not learnt; 2 is usual; 0 is off.",
    )
    entropy_bonus: float = setting(0.0, "Weight of the entropy that is added to the objective.")
    resampling: Resampling = setting(
        "none",
        "Prompts that teach nothing: a new pass leaves out, by the last group of each, none; with history those whose "
        "images all reached the top of the reward; with alike those whose images were all alike. With dynamic, which "
        "is DAPO's, a step draws for further prompts until prompts_per_step have images that differ, and learns from "
        "these alone.",
    )
    max_draws: int = setting(
        4,
        "Draws of a step with resampling dynamic at most; then it learns from what it has, which the run tells.",
        of="resampling=dynamic",
    )
    max_images: int = setting(
        0,
        "Images after which the run ends, of all that were drawn, as a step of resampling dynamic may draw several "
        "times; 0 is no limit but steps.",
    )
    then: tuple[str, ...] = setting(
        (),
        "Name or folder of a reward to learn from after then_after updates, in place of those before; may be given "
        "several times, and name one of those again to keep it.",
    )
    then_after: int = setting(0, "Updates after which the rewards of then take over.")
    permute: bool = setting(
        False,
        "Draw half of each group for another order of the things in the prompt, where it means the same.",
        switch=True,
    )
    text_weight: float | None = setting(
        None,
        "Share that a text which the generator writes first has in the loss, where text and image are each a mean over "
        "their own tokens; none is one mean over all.",
    )
    entropy_targets: tuple[float, ...] = setting(
        (),
        "Nats to which the mean entropy of a token is steered, by a bonus that may turn to its opposite: of the image, "
        "or of the text and the image in turn where the generator writes a text first.",
    )
    entropy_rate: float = setting(5e-5, "How fast that bonus changes.", of="entropy_targets")
    entropy_limit: float = setting(5e-3, "Largest weight of that bonus.", of="entropy_targets")
    sub_policies: tuple[str, ...] = setting(
        (),
        "Recipe of a sub-policy, such as temperature=0.7 or guidance=2,top_p=0.9; given several times, they draw equal "
        "shares of each group, and each image is trained under its own.",
    )
    diversity: float = setting(
        0.0,
        "Weight of how unlike the others of its group an image looks, in deviations of the reward; added to the "
        "standardised reward, to keep a group varied.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_each()
        self._check_order()
        self._check_groups()
        self._check_tokens()

    def _check_each(self) -> None:
        """Settings by themselves."""
        for name in ("steps", "prompts_per_step", "num_iterations", "max_draws"):
            check(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        for name in (
            "prompts_per_draw",
            "beta",
            "min_std",
            "entropy_bonus",
            "gate",
            "reference_every",
            "diversity",
            "importance_cap",
        ):
            check(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        for name in ("epsilon", "epsilon_high", "entropy_rate", "entropy_limit"):
            value = getattr(self, name)
            check(value is None or value > 0, name, "be above 0", value)
        for target in self.entropy_targets:
            check(target >= 0, "entropy_targets", "be at least 0", target)
        check(
            self.max_images == 0 or self.max_images >= self.rows,
            "max_images",
            f"be 0 or hold one draw of {self.rows}",
            self.max_images,
        )
        choice("loss_type", self.loss_type, GrpoLoss)
        choice("baseline", self.baseline, Baseline)
        choice("advantage", self.advantage, Comparison)
        choice("scale_rewards", self.scale_rewards, Scale)
        choice("resampling", self.resampling, Resampling)
        choice("kl_estimator", self.kl_estimator, KlEstimator)
        choice("token_weights", self.token_weights, TokenWeights)
        check(0 < self.reference_mix <= 1, "reference_mix", "lie above 0 and up to 1", self.reference_mix)
        check(0 <= self.ema < 1, "ema", "lie in 0..1", self.ema)
        for text in self.sub_policies:
            changes(text)

    def _check_order(self) -> None:
        """What happens when: rewards that follow, references that move, checkpoints."""
        if bool(self.then) != bool(self.then_after) or self.then_after < 0:
            raise ValueError(
                f"then and a then_after of at least 1 go together, got {list(self.then)} and {self.then_after}."
            )
        if self.then:
            check(self.then_after < self.steps, "then_after", f"be below steps, {self.steps}", self.then_after)
        if self.reference_every and (not self.beta or self.lora_rank):
            raise ValueError(
                f"reference_every must go with a beta above 0 and no adapters, got beta {self.beta} and lora_rank "
                f"{self.lora_rank}; leave it at 0."
            )
        if self.save_every % self.num_iterations:
            raise ValueError(
                f"save_every must be a multiple of num_iterations, got {self.save_every} and {self.num_iterations}; "
                f"a draw is not kept in a checkpoint, so one can only be written between two draws."
            )

    def _check_groups(self) -> None:
        """What a group is made of and compared by."""
        if self.permute and self.group_size % 2:
            raise ValueError(f"permute must go with an even group_size, got {self.group_size}; add or take one.")
        shares = len(self.sub_policies) * (2 if self.permute else 1)
        if self.sub_policies and (len(self.sub_policies) < 2 or self.group_size % shares):
            raise ValueError(
                f"sub_policies must be at least 2 and share a group, or with permute each half of it, equally, got "
                f"{len(self.sub_policies)} for a group_size of {self.group_size}."
            )
        if self.diversity and self.margins_count:
            raise ValueError(
                f"diversity must go with neither gate nor win_rate, which ask for margins of the reward, got gate "
                f"{self.gate} and advantage {self.advantage}; leave one out."
            )

    def _check_tokens(self) -> None:
        """How the tokens of an image share its advantage."""
        if self.token_weights != "none" and self.loss_type == "gspo":
            raise ValueError("token_weights must be none with loss_type gspo, whose ratio is one for all tokens.")
        for name, kind in (("permute", "wording"), ("sub_policies", "recipe")):
            if getattr(self, name) and self.token_weights != "none":
                raise ValueError(
                    f"{name} must go without token_weights, which compare images of one {kind}, got "
                    f"{self.token_weights}; leave one out."
                )
        if self.text_weight is not None:
            check(0 <= self.text_weight <= 1, "text_weight", "lie in 0..1", self.text_weight)
            check(self.loss_type != "gspo", "text_weight", "go with a ratio for each token", "loss_type gspo")

    @property
    def margins_count(self) -> bool:
        return self.gate > 0 or self.advantage == "win_rate"

    @property
    def most_images(self) -> int:
        """Images of the whole run, or where resampling is dynamic as many at most."""
        images = self.draws * self.rows * (self.max_draws if self.resampling == "dynamic" else 1)
        return min(images, self.max_images // self.rows * self.rows) if self.max_images else images

    @property
    def draws(self) -> int:
        """Steps of the whole run that draw."""
        return -(-self.steps // self.num_iterations)

    @property
    def rows(self) -> int:
        """Images of one draw, and of one update, over all processes."""
        return self.prompts_per_step * self.group_size
