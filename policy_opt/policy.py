"""A generator as a trainer sees it: a module that gives log-probabilities of codes, and the parameters that learn."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rwk.policy_opt.generator import Generator, Rollout, TokenStatistics
from rwk.policy_opt.low_rank import is_half, left_out, put_beside, put_on, taken_off
from rwk.policy_opt.module_state import recomputing
from rwk.policy_opt.quiet import quiet
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.settings import Optimisation

T = TypeVar("T")
Statistics = Callable[[Rollout], TokenStatistics]
"""`Generator.statistics`, or that of a reference."""


class PolicyOutput(NamedTuple):
    """What TRL reads of a model's answer, all [B, L]; a tuple, since DDP looks for gradients in tuples."""

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


class Policy(nn.Module):
    """A generator as TRL sees it. Its state, so a checkpoint too, is what is trained and no more."""

    is_gradient_checkpointing = False  # to TRL; `trainable` sees to it
    _keys_to_ignore_on_save = None
    _no_split_modules: Sequence[str] = ()
    """Classes of the layers by which it may be sharded."""

    def __init__(
        self,
        module: nn.Module,
        statistics: Statistics,
        prompts: Sequence[str],
        sampling: Sampling,
        recipes: Sequence[Sampling] = (),
    ) -> None:
        """
        Args:
            module: holds the parameters that `statistics` computes with.
            prompts: the table that a handle is an index of.
            sampling: the distribution that is drawn from and trained.
            recipes: the distributions instead, where rows have different ones; the table then comes once for each.
        """
        from transformers import GenerationConfig, PretrainedConfig

        super().__init__()
        self.config = PretrainedConfig()
        self.generation_config = GenerationConfig()
        self.trained = module
        self.statistics = statistics
        self.prompts = list(prompts)
        self.sampling, self.recipes = sampling, tuple(recipes)
        self.finer: dict[str, Tensor] = {}
        """Where known, what parameters of half precision are roundings of, float32, by name; a trainer takes it."""

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> PolicyOutput:
        """Log-probabilities and entropies of the codes in input_ids [B, 1 + L], 0 where labels [B, 1 + L] are -100."""
        handles, tokens = input_ids[:, 0], input_ids[:, 1:]
        zeros = torch.zeros(tokens.shape, device=tokens.device)
        result = self.statistics(self.rollout(handles, tokens, zeros, group=handles))
        ignored = labels[:, 1:] == -100
        return PolicyOutput(
            result.logprobs.masked_fill(ignored, 0),
            result.entropy.masked_fill(ignored, 0),
            zeros,
            torch.zeros_like(ignored),
        )

    def rollout(self, handles: Tensor, tokens: Tensor, logprobs: Tensor, *, group: Tensor) -> Rollout:
        """The rows of these handles [B], with tokens [B, L], log-probabilities [B, L] and numbers of groups [B]."""
        prompts = [self.prompts[handle % len(self.prompts)] for handle in handles.tolist()]
        recipes = [self.recipes[handle // len(self.prompts)] for handle in handles.tolist() if self.recipes]
        return Rollout(prompts, group, tokens, logprobs, self.sampling, tuple(recipes))

    def handles(self, rollout: Rollout) -> list[int]:
        """[B] the handle of every row, which tells its prompt and its recipe."""
        known = {prompt: handle for handle, prompt in enumerate(self.prompts)}
        numbers = [self.recipes.index(recipe) for recipe in rollout.recipes] or [0] * len(rollout)
        return [known[p] + len(known) * number for p, number in zip(rollout.prompts, numbers, strict=True)]

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters alone, each once."""
        return {
            name: self.finer.get(name, value.detach()) for name, value in self.named_parameters() if value.requires_grad
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Takes up such a state; what of it is finer than a parameter is rounded into it, and kept beside it."""
        own = dict(self.named_parameters())
        self.finer = {n: v for n, v in state_dict.items() if n in own and v.element_size() > own[n].element_size()}
        return super().load_state_dict(state_dict, *args, **options)

    def add_model_tags(self, tags: object) -> None:
        """Does nothing: tags are for uploads."""


class World(NamedTuple):
    """The processes of a run."""

    rank: int
    size: int
    device: torch.device

    def gather(self, rows: Tensor) -> Tensor:
        """[size * B, ...] on the CPU: the rows [B, ...] of every process, in order of rank."""
        from accelerate.utils import gather

        return gather(rows.to(self.device)).cpu()  # type: ignore[no-any-return]

    def share(self, count: int) -> range:
        """Which of so many things fall to this process: neighbours, and as many as to another but for one.

        >>> [list(World(rank, 2, torch.device("cpu")).share(3)) for rank in range(2)]
        [[0], [1, 2]]
        """
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def collect(self, value: T | None) -> list[T]:
        """What the processes passed, in order of rank, without None; tensors in it must be on the CPU."""
        from accelerate.utils import gather_object

        return [part for part in gather_object([value]) if part is not None]

    def wait(self) -> None:
        """Returns when every process has come here."""
        from accelerate.utils import wait_for_everyone

        wait_for_everyone()


ALONE = World(0, 1, torch.device("cpu"))
"""One process by itself."""


def world(device: torch.device) -> World:
    """The processes of this run, connected; `accelerate launch` and `torchrun` start them."""
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return World(state.process_index, state.num_processes, device)


@contextmanager
def trainable(generator: Generator, config: Optimisation, *, keep: bool) -> Iterator[Statistics | None]:
    """Prepares `generator.module` for training.

    With `lora_rank` above 0 adapters take the place of the linear layers. At the end they are merged into these, or
    where those are of half precision, which would lose small changes, they stay beside them (`low_rank`). With
    `gradient_checkpointing` layers are computed again in the backward pass, until the end.

    Args:
        keep: whether a reference is needed.

    Yields:
        `statistics` of the reference, which stays as the generator was: a copy, or the generator without its adapters.
    """
    if config.gradient_checkpointing:
        with recomputing(generator.module), _adapted(generator, config, keep=keep) as reference:
            yield reference
    else:
        with _adapted(generator, config, keep=keep) as reference:
            yield reference


@contextmanager
def _adapted(generator: Generator, config: Optimisation, *, keep: bool) -> Iterator[Statistics | None]:
    """What `trainable` does but for gradient checkpointing."""
    if config.lora_rank == 0:
        yield copy.deepcopy(generator).statistics if keep else None
        return
    from peft import LoraConfig, get_peft_model

    module = generator.module
    before = taken_off(module)
    learns = {name for name, value in module.named_parameters() if value.requires_grad}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        alpha: Any = config.lora_alpha or 2 * config.lora_rank
        lora = LoraConfig(r=config.lora_rank, lora_alpha=alpha, target_modules=_linear_layers(generator))
        with quiet():
            adapted = get_peft_model(module, lora)
    put_beside(adapted, before)

    def without_adapters(rollout: Rollout) -> TokenStatistics:
        with left_out(adapted, before):
            return generator.statistics(rollout)

    try:
        yield without_adapters if keep else None
    finally:
        learnt = taken_off(module) if is_half(module) else {}
        if not learnt:
            adapted.merge_and_unload()
            vars(module).pop("peft_config", None)
        for name, value in module.named_parameters():
            value.requires_grad_(name in learns)
        put_on(module, learnt)


def kl_per_image(statistics: Statistics, reference: Statistics, rollout: Rollout) -> Tensor:
    """[B] nats: log-probability of each image less that of the reference, whose mean estimates their KL divergence.

    Args:
        statistics: of the generator as it was when it drew the rollout.
    """
    with torch.no_grad():
        biased = rollout.sampling.mode == "cond_only"
        drawn = statistics(rollout).logprobs if biased else rollout.logprobs
        return (drawn - reference(rollout).logprobs).sum(dim=1)


def _linear_layers(generator: Generator) -> list[str]:
    """Names of the linear layers that LoRA may change: those that share their weight with no other layer."""
    module = generator.module
    uses = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    found = [
        name
        for name, part in module.named_modules()
        if name and isinstance(part, nn.Linear) and uses[id(part.weight)] == 1
    ]
    if not found:
        raise ValueError(f"{generator.spec.name} has no linear layer for LoRA to adapt; set lora_rank to 0.")
    return found
