"""What a run will hold in memory, draw and train, computed from its settings and the shape of its generator.

Every number is computed, none is measured. In bytes, for one process, with b bytes a number, P parameters of which T
learn, and rows that count double under guidance; masters are `policy_opt.masters`, and adapters are float32:

    weights P b, gradients T b, AdamW 8 T, masters 4 T where b is 2, a reference P b, an average of the weights 4 T;
                 of low-rank changes that an earlier run left beside the weights 4 each with these and a reference
    cache        rows drawn * (prompt + image) * 2 (keys and values) * layers * width of keys * b; of compiled steps
                 rows and length are those of their graphs (`compiled`), and the cache stays while it is learnt
    laid out     as many bytes as the layers that a CPU lays out for a draw have (`packed`)
    activations  rows trained at once * (prompt + image) * layers * 34 hidden * b / 2; with gradient checkpointing
                 2 hidden a layer, and 34 of the one that is computed again
    logits       4 * rows trained at once * image * codes, 2^22 of them at most

In n processes FSDP2 and stage 2 of ZeRO hold gradients T b / n, AdamW 8 T / n and masters 4 T / n; FSDP2 also a twin of
the generator, its weights P b / n and its decoder whole (`sharded`), and ZeRO masters of float32 weights too. Layers
that are gathered for a moment, and what DeepSpeed keeps for its messages, are left out.

A generator that keeps no cache reads prompt and image anew in every draw, and so makes as many times the operations;
it holds the activations of one draw, since each is computed again backwards, at another 2 N.

Korthikanti et al. (2022), arXiv:2205.05198, count the 34, without the attention's scores, which a fused kernel does not
keep. A token costs 2 N operations forward and 6 N forth and back, N being the parameters that it is multiplied by, and
8 N where layers are computed again. A row without its prompt is not trained in the mode `cond_only`, and only read in
`matched_detach_uncond`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rwk.policy_opt.compiled import WIDTH, rows_taken
from rwk.policy_opt.configs import Grpo, Pairwise, Rft, Rounds
from rwk.policy_opt.groups import drawn_at_once
from rwk.policy_opt.packed import LEAST_ROWS, MOST_BYTES
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import GuidanceMode
from rwk.policy_opt.settings import Optimisation
from rwk.policy_opt.sharded import Sharding
from rwk.policy_opt.sizing_shape import Shape

GIB = 2**30
FLOAT = 4
"""Bytes of a number in float32, in which AdamW keeps its state."""


@dataclass(frozen=True)
class Card:
    """An accelerator, by its maker's data sheet."""

    operations: float = 989e12
    """A second, of bf16."""
    bandwidth: float = 3.35e12
    """Bytes a second."""
    share: float = 0.4
    """Of the operations that training is taken to reach."""


H100 = Card()


@dataclass(frozen=True)
class Plan:
    """What a run will hold, in bytes, and do; what comes of pairs, or is drawn with resampling dynamic, at most."""

    weights: int
    gradients: int
    optimizer: int
    masters: int
    reference: int
    average: int
    decoder: int
    twin: int
    cache: int
    laid_out: int
    activations: int
    logits: int
    trained_parameters: int
    images_drawn: int
    tokens_drawn: int
    tokens_trained: int
    images_scored: int
    sampling_operations: float
    training_operations: float
    sampling_bytes: float
    """Read by the decoding steps: in each the weights and the cache, half full in the mean, or whole if compiled."""
    keeps_cache: bool = False
    """Whether the cache stays while it is learnt, as that of compiled steps does."""

    @property
    def peak(self) -> int:
        """Bytes at most: the cache is gone when activations are held, unless compiled steps keep it."""
        state = self.weights + self.gradients + self.optimizer + self.masters + self.twin
        held = state + self.reference + self.average + self.decoder
        learning = self.activations + self.logits
        if self.keeps_cache:
            return held + self.cache + max(self.laid_out, learning)
        return held + max(self.cache + self.laid_out, learning)

    def hours(self, card: Card = H100) -> float:
        """Hours of drawing and training on one card, without rewards and decoding: a bound from below."""
        sampling = max(self.sampling_operations / card.operations, self.sampling_bytes / card.bandwidth)
        return (sampling + self.training_operations / (card.operations * card.share)) / 3600

    def document(self) -> dict[str, Any]:
        """All of it by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"peak": self.peak}


def plan(
    config: Optimisation,
    shape: Shape,
    *,
    prompts: int,
    rewards: int,
    guided: bool,
    mode: GuidanceMode = "matched",
    processes: int = 1,
    sharding: Sharding = "none",
    lays_out: bool = False,
) -> Plan:
    """What a run holds in each process, and does over all of them.

    Args:
        prompts: different ones to learn from.
        rewards: that score every image; a pair judge counts once for each answer about it.
        guided: whether guidance is other than 1.
        mode: of `Sampling`.
        processes: over which a draw and an update are spread.
        sharding: what else is.
        lays_out: whether it is drawn on a CPU that has a layout of its own for weights of that width.
    """
    images, at_once, trained, passes = _counts(config, prompts, processes)
    double = 2 if guided else 1
    learnt = 2 if guided and mode == "matched" else 1  # branches with a gradient
    seen = 1 if mode == "cond_only" else double
    learns = config.lora_rank * shape.linear if config.lora_rank else shape.parameters
    length, b, beside = shape.prompt + shape.tokens, shape.width, FLOAT * shape.beside
    copies = 0 if config.lora_rank else _kept(config)
    micro = _micro(config, processes)
    rows, room = at_once * double, length
    if config.torch_compile:
        rows, room = rows_taken(rows), -(-length // WIDTH) * WIDTH
    cache = rows * room * 2 * shape.layers * shape.keys * b if shape.cached else 0
    draws, filled = shape.draws or shape.tokens, 1.0 if config.torch_compile else 0.5
    again = 1 if shape.cached else draws
    recomputed = 0.0 if shape.cached and not config.gradient_checkpointing else 2.0
    trained_passes = (2.0 * seen + (4.0 + recomputed) * learnt) * trained + 2.0 * seen * passes
    wide = FLOAT if config.lora_rank else b  # of a weight that learns
    steps = images / max(at_once * processes, 1) * draws
    parts = 1 if sharding == "none" else processes
    masters = wide < FLOAT or sharding in ("zero1", "zero2")
    pays = lays_out and at_once * shape.tokens >= LEAST_ROWS and shape.large * b <= MOST_BYTES
    return Plan(
        weights=shape.parameters * b + beside + (learns * wide if config.lora_rank else 0),
        gradients=learns * wide // (1 if sharding == "zero1" else parts),
        optimizer=2 * learns * FLOAT // parts,
        masters=learns * FLOAT // parts if masters else 0,
        reference=copies * ((shape.parameters + shape.decoder) * b + beside),
        average=learns * (FLOAT * _averages(config, wide)),
        decoder=shape.decoder * b,
        twin=shape.parameters * b // parts + shape.decoder * b if sharding == "fsdp" else 0,
        cache=cache,
        laid_out=shape.large * b if pays else 0,
        activations=micro * learnt * length * _kept_of_layers(config, shape) * shape.hidden * b // 2,
        logits=4 * seen * min(micro * shape.tokens * shape.codes, CausalGenerator.max_logits),
        trained_parameters=learns,
        images_drawn=images,
        tokens_drawn=images * shape.tokens,
        tokens_trained=trained * shape.tokens,
        images_scored=images * rewards,
        sampling_operations=2.0 * shape.active * images * shape.tokens * double * again,
        training_operations=shape.active * shape.tokens * again * trained_passes,
        sampling_bytes=steps * processes * (shape.active * b + shape.beside * (FLOAT - b) + cache * filled),
        keeps_cache=config.torch_compile,
    )


def _kept_of_layers(config: Optimisation, shape: Shape) -> int:
    """Numbers of half precision that all layers keep for the backward pass, for each of `hidden`."""
    return 2 * shape.layers + 34 if config.gradient_checkpointing else 34 * shape.layers


def _counts(config: Optimisation, prompts: int, processes: int) -> tuple[int, int, int, int]:
    """Images drawn in all, drawn at once in a process, trained, and passed through once more without gradient."""
    if isinstance(config, Grpo):
        images, learnt = config.most_images, config.draws * config.rows
        extra = config.num_iterations > 1
        weighed = 2 if config.token_weights == "gcpo" else 0
        again = learnt * (extra + weighed + (config.beta > 0))
        own = config.prompts_per_step // processes
        at_once = min(drawn_at_once(config, own), own) * config.group_size
        return images, at_once, config.steps * config.rows, again
    if not isinstance(config, Rounds):
        raise TypeError(f"no plan is known of {type(config).__name__}.")
    drawn_for = min(config.prompts_per_round or prompts, prompts)
    images = config.rounds * drawn_for * config.group_size
    whole = min(config.prompts_per_draw, drawn_for)
    draws = -(-drawn_for // whole)
    own = -(-whole // -(-processes // draws))
    at_once = (-(-own // 2) if config.score_meanwhile and draws <= processes else own) * config.group_size
    learnt = config.rounds * drawn_for * config.learnt
    beside = config.rounds * drawn_for * isinstance(config, Rft)  # the worst of each group
    return images, at_once, config.epochs * learnt, learnt + beside


def _kept(config: Optimisation) -> int:
    """Copies of the generator beside the one that learns."""
    if isinstance(config, Grpo):
        fixed = config.beta > 0 or config.kl_every > 0 or config.token_weights == "gcpo"
        return fixed + (config.reference_every > 0)
    return int(config.kl_every > 0 or (isinstance(config, Pairwise) and config.reference == "fixed"))


def _averages(config: Optimisation, wide: int) -> int:
    """Float32 averages of weights of that many bytes: of the policy, and of a reference that moves by a share."""
    if not isinstance(config, Grpo):
        return 0
    return (config.ema > 0) + (config.reference_every > 0 and config.reference_mix < 1 and wide < FLOAT)  # else its own


def _micro(config: Optimisation, processes: int) -> int:
    """Rows that go through the model at once, with gradient, in one process."""
    if isinstance(config, Rounds):
        return (config.micro_batch or config.batch_size // processes) * config.learnt
    return config.micro_batch or (config.rows if isinstance(config, Grpo) else 0) // processes
