"""Trainers of TRL's and of transformers' own with what an image generator needs in them; `trl_bridge` builds them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from rwk.policy_opt.grpo import Lesson, kl_penalty
from rwk.policy_opt.modalities import EntropyControl
from rwk.policy_opt.off_policy import truncated_weights
from rwk.policy_opt.policy import PolicyOutput
from rwk.policy_opt.rft import rft_loss
from rwk.policy_opt.settings import KlEstimator

PairLoss = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
"""From log-ratios [P] to the reference of the better and of the worse images, and the columns `margin`, `p_won` and
`weight`, all [P], of `PreferencePairs`, to a loss []."""


def trl() -> Any:
    """The library, on first use, since it is slow to import."""
    return importlib.import_module("trl")  # which exports its classes in a way that no type checker sees


def make_ready() -> None:
    """Imports all that a trainer takes, which is seconds of work, before anybody measures what learning costs."""
    importlib.import_module("datasets")
    for made in (grpo_class, dpo_class, likelihood_class, tokenizer):
        made()


class _Exact:
    """What keeps the numbers of a trainer's inputs as they are: under DeepSpeed they would be of the weights' type."""

    args: Any

    def _prepare_input(self, data: Any) -> Any:
        parent: Any = super()
        return data.to(self.args.device) if isinstance(data, Tensor) else parent._prepare_input(data)


class _Silent(_Exact):
    """What keeps a trainer of TRL's to itself."""

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass


class _Part:
    """A trainer of one part of a run, whose learning rate goes by the updates of the run."""

    span: tuple[int, int] | None = None
    """Updates of the run before its own, and in all; None where its own are all."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        before, total = self.span or (0, num_training_steps)
        parent: Any = super()
        whole = parent.create_scheduler(total, optimizer)
        self.lr_scheduler = LambdaLR(whole.optimizer, [_ahead(share, before) for share in whole.lr_lambdas])
        return self.lr_scheduler


def _ahead(share: Callable[[int], float], before: int) -> Callable[[int], float]:
    return lambda step: share(before + step)


@functools.cache
def grpo_class() -> Any:
    """GRPO with what a `Lesson` knows, truncated importance weights, the KL of `kl_penalty`, and steered entropy."""

    class ImageGrpoTrainer(_Silent, trl().GRPOTrainer):  # type: ignore[misc]
        kl_estimator: KlEstimator = "k3"
        beta: float
        cap = 0.0
        entropy_bonus = 0.0
        lesson: Lesson
        entropy_control: EntropyControl | None = None

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            """TRL's, with what is known of rows and tokens; as columns, since TRL shuffles and splits them."""
            output = super()._generate_and_score_completions(inputs)
            _, advantage, counts, pull = self.lesson
            device = output["advantages"].device
            if advantage.ndim == 2:  # TRL's loss takes advantages of tokens, but no reward gives them
                output["advantages"] = advantage.to(device)
            output["counts"] = counts.to(device)
            output["pull"] = torch.ones_like(output["completion_ids"]).float() if pull is None else pull.to(device)
            return output

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            """TRL's loss of the advantages, times what each row counts, and ours of the KL and of the entropy.

            All images are as long, so each of TRL's losses is a mean over rows and tokens, and linear in what counts.
            """
            inputs, answers = dict(inputs), []
            counts = inputs["counts"][:, None]
            advantages = inputs["advantages"]
            inputs["advantages"] = (advantages[:, None] if advantages.ndim == 1 else advantages) * counts

            def overheard(**asked: Any) -> Any:
                answers.append(model(**asked))
                if self.cap:  # TRL reads the advantages after this
                    self._weigh(answers[0].log_probs, inputs)
                return answers[0]

            beta, self.beta = self.beta, 0.0
            try:
                loss = super()._compute_loss(overheard, inputs)
            finally:
                self.beta = beta
            now, entropy = answers[0].log_probs, counts * answers[0].entropy
            if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:  # nothing has moved since
                ahead = inputs["sampling_per_token_logps"] - now.detach()
                biased = self.model.sampling.mode == "cond_only"
                name, apart = ("guidance_gap", ahead) if biased else ("drift", ahead.abs())
                self._metrics["train"][name].append(apart.mean().item())
            term = -self.entropy_bonus * entropy.mean()
            if self.beta:
                term = term + self.beta * self._kl(now, inputs)
            if self.entropy_control:
                term = term + self.entropy_control.term(entropy, inputs["completion_ids"])
            return loss + term / self.current_gradient_accumulation_steps

        def _kl(self, now: Tensor, inputs: dict[str, Any]) -> Tensor:
            """[] what beta weighs."""
            kl = kl_penalty(now, inputs.get("old_per_token_logps"), inputs["ref_per_token_logps"], self.kl_estimator)
            kl = inputs["counts"][:, None] * inputs["pull"] * kl
            self._metrics["train"]["kl"].append(self.accelerator.gather(kl.detach().mean()).mean().item())
            pulled: Tensor = kl.mean()
            return pulled

        def _weigh(self, now: Tensor, inputs: dict[str, Any]) -> None:
            """Multiplies the advantages of the tokens by their truncated importance weights."""
            old = inputs.get("old_per_token_logps")
            whole = self.importance_sampling_level == "sequence"
            drawn = inputs["sampling_per_token_logps"]
            weights = truncated_weights(now if old is None else old, drawn, self.cap, whole=whole)
            inputs["advantages"] = inputs["advantages"] * weights
            self._metrics["train"]["weight"].append(weights.mean().item())
            self._metrics["train"]["capped"].append((weights == self.cap).float().mean().item())

    return ImageGrpoTrainer


class WeightedOutput(NamedTuple):
    """A `PolicyOutput` with what TRL takes the weight of a sequence from: exp(mean(log_probs - log_sum_sq_probs))."""

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    log_sum_sq_probs: Tensor


def read_once(model: Any, ids: Tensor) -> PolicyOutput:
    """The model's answer for rows [B, 1 + L], of which equal ones go through it once."""
    rows, place = ids.unique(dim=0, return_inverse=True)
    return PolicyOutput(*(value[place] for value in model(input_ids=rows, labels=rows)))


@functools.cache
def dpo_class() -> Any:
    """DPO on weighted pairs with known log-probabilities of their reference, or a loss of our own, `own_loss`."""

    class ImageDpoTrainer(_Part, _Silent, trl().DPOTrainer):  # type: ignore[misc]
        own_loss: PairLoss | None = None
        sft_weight = 0.0

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # numbers of prompts, of which the collator knows the pairs

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset  # are known

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            columns, answers = inputs.pop("columns"), []
            weight = columns["weight"]

            def overheard(input_ids: Tensor, **_: Any) -> WeightedOutput:
                answers.append(read_once(model, input_ids))
                half = weight.log().repeat(2)[:, None] / 2  # TRL multiplies the weights of a pair's two images
                return WeightedOutput(*answers[0], answers[0].log_probs.detach() - half)

            loss = super()._compute_loss(overheard, inputs, return_outputs)
            now = answers[0].log_probs.sum(dim=1).chunk(2)
            if self.own_loss:  # TRL's is dropped, and what it logs stays
                won, lost = now[0] - inputs["ref_chosen_logps"], now[1] - inputs["ref_rejected_logps"]
                loss = self.own_loss(won, lost, columns)
            if self.sft_weight:  # TRL's cannot be weighted
                loss = loss + self.sft_weight * rft_loss(answers[0].log_probs.chunk(2)[0], weight)
            return loss

    return ImageDpoTrainer


@functools.cache
def likelihood_class() -> Any:
    """The mean log-probability of images; TRL's trainer for this asks a model for its logits."""
    from transformers import Trainer

    class LikelihoodTrainer(_Part, _Exact, Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            ids = inputs["input_ids"].flatten(0, 1)  # [B, C, 1 + L]
            return rft_loss(read_once(model, ids).log_probs, inputs["weight"].flatten())

    return LikelihoodTrainer


@functools.cache
def tokenizer() -> Any:
    """A tokenizer without text: TRL wants one for its padding ids, and to decode what it need not read."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    class NoText(PreTrainedTokenizerFast):
        def batch_decode(self, sequences: Any, *_: Any, **__: Any) -> list[str]:
            return [""] * len(sequences)

        def save_pretrained(self, *_: Any, **__: Any) -> tuple[str, ...]:
            return ()

    table = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return NoText(  # type: ignore[no-untyped-call]
        tokenizer_object=table, pad_token="<pad>", eos_token="<eos>"
    )
