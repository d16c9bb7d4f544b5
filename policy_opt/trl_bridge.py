"""Lets TRL's trainers optimise any generator; what is private to TRL is touched here and in `trl_trainers` alone.

To TRL a prompt is one id, its handle, and an image is its codes: input_ids [B, 1 + L] = [handle, code_1 .. code_L]. All
that TRL asks of the model that it trains are log-probabilities and entropies, and `Policy` takes these from
`Generator.statistics`. So guidance, temperature and truncation are matched by the generator's own code, no text is
padded, and no logits are kept. tests/test_trl_bridge.py pins what of TRL this leans on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwk.policy_opt.calibrated import soft_label_loss
from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft, Rounds
from rwk.policy_opt.dpo import margin_loss
from rwk.policy_opt.grpo import Lesson
from rwk.policy_opt.journal import Journal
from rwk.policy_opt.masters import check_has_masters, keep_masters
from rwk.policy_opt.movement import movement
from rwk.policy_opt.pairs import PreferencePairs
from rwk.policy_opt.policy import Policy, World
from rwk.policy_opt.quiet import quiet
from rwk.policy_opt.rebel import rebel_loss
from rwk.policy_opt.recorder import recorder, stopper
from rwk.policy_opt.sharded import learner_of, taking_over
from rwk.policy_opt.trainer_arguments import trainer_arguments
from rwk.policy_opt.trl_trainers import PairLoss, dpo_class, grpo_class, likelihood_class, tokenizer, trl

Draw = Callable[[list[int], int], Lesson]
"""From the handles of the prompts that are next in this process, each once, and the updates done so far, to images of
as many prompts, these or others of the table, and how each is learnt from."""


def grpo_trainer(
    config: Grpo,
    policy: Policy,
    reference: Policy | None,
    draw: Draw,
    schedule: Sequence[int],
    tokens: int,
    journal: Journal,
    folder: Path,
    place: World,
) -> Any:
    """A TRL trainer for GRPO, of images of that many tokens, whose rollouts and advantages are `draw`'s.

    Args:
        schedule: handles of the prompts of all draws in a row, over all processes.
    """
    from datasets import Dataset  # type: ignore[import-untyped]

    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    with quiet():
        trainer = grpo_class()(
            model=learner_of(policy),
            args=trl().GRPOConfig(
                **trainer_arguments(config, policy, folder, place, rows=config.rows),
                max_steps=config.steps,
                num_generations=config.group_size,
                max_completion_length=tokens,
                num_iterations=config.num_iterations,
                loss_type="grpo" if config.loss_type == "gspo" else config.loss_type,
                importance_sampling_level="sequence" if config.loss_type == "gspo" else "token",
                epsilon=config.epsilon,
                epsilon_high=high + (config.loss_type == "cispo"),  # where it is the ratio itself
                scale_rewards="none",
                shuffle_dataset=False,
                beta=0.0,  # else TRL would load a reference from the hub
            ),
            reward_funcs=_advantage_as_reward,
            rollout_func=_rollout_func(config, draw, policy),
            train_dataset=Dataset.from_dict({"prompt": list(schedule)}),
            processing_class=tokenizer(),
        )
    trainer.beta, trainer.ref_model, trainer.kl_estimator = config.beta, reference, config.kl_estimator
    trainer.cap, trainer.entropy_bonus = config.importance_cap, config.entropy_bonus
    return _finished(trainer, policy, journal)


def _rollout_func(config: Grpo, draw: Draw, policy: Policy) -> Callable[[list[int], Any], dict[str, Any]]:
    """`draw` as TRL calls it: with every prompt group_size times in a row, and lists for an answer."""

    def rollout(handles: list[int], trainer: Any) -> dict[str, Any]:
        prompts = handles[:: config.group_size]
        if handles != [handle for handle in prompts for _ in range(config.group_size)]:
            raise RuntimeError("TRL must repeat a prompt group_size times in a row; see tests/test_trl_bridge.py.")
        trainer.lesson = lesson = draw(prompts, trainer.state.global_step)
        drawn, advantage = lesson.rollout, lesson.advantage
        whole = advantage if advantage.ndim == 1 else advantage.mean(1)
        columns = {"completion_ids": drawn.tokens, "logprobs": drawn.logprobs, "advantage": whole}
        return {"prompt_ids": [[handle] for handle in policy.handles(drawn)]} | {
            k: x.tolist() for k, x in columns.items()
        }

    return rollout


def _advantage_as_reward(advantage: list[float], **_: Any) -> list[float]:
    return advantage  # of mean 0 in its group, so that TRL, which takes the mean off and does not scale, keeps it


def dpo_trainer(
    config: Dpo, policy: Policy, pairs: PreferencePairs, journal: Journal, folder: Path, place: World, *, before: int
) -> Any:
    """A TRL trainer for DPO on pairs whose reference log-probabilities are known.

    Args:
        before: updates of the rounds before, for the count in the journal.
    """

    def soft(won: Tensor, lost: Tensor, columns: dict[str, Tensor]) -> Tensor:
        return soft_label_loss(won, lost, columns["p_won"], columns["weight"], beta=config.beta)

    mean_margin = (pairs.weight * pairs.margin).double().mean().item()

    def by_margin(won: Tensor, lost: Tensor, columns: dict[str, Tensor]) -> Tensor:
        margin, weight = columns["margin"], columns["weight"]
        weight = weight * margin / mean_margin if config.margin_weight else weight
        return margin_loss(won, lost, margin, weight, beta=config.beta, offset=config.margin_offset)

    def hinge(won: Tensor, lost: Tensor, columns: dict[str, Tensor]) -> Tensor:
        return (columns["weight"] * (1 - config.beta * (won - lost)).relu()).mean()

    own = hinge if config.loss_type == "hinge" else None  # TRL's cannot be weighted: it multiplies in place
    own = by_margin if config.margin_offset or config.margin_weight else own
    trainer = _pair_trainer(
        soft if config.soft_labels else own,
        config,
        policy,
        pairs,
        folder,
        place,
        beta=config.beta,
        loss_type=[config.loss_type],
        label_smoothing=config.label_smoothing,
    )
    trainer.sft_weight = config.sft_weight
    return _finished(trainer, policy, journal, before=before)


def rebel_trainer(
    config: Rebel, policy: Policy, pairs: PreferencePairs, journal: Journal, folder: Path, place: World, *, before: int
) -> Any:
    """TRL's trainer for DPO with the loss of REBEL; arguments as for `dpo_trainer`."""

    def squares(won: Tensor, lost: Tensor, columns: dict[str, Tensor]) -> Tensor:
        return rebel_loss(won, lost, columns["margin"], columns["weight"], eta=config.eta)

    trainer = _pair_trainer(squares, config, policy, pairs, folder, place, beta=1 / config.eta)
    return _finished(trainer, policy, journal, before=before)


def rft_trainer(
    config: Rft, policy: Policy, pairs: PreferencePairs, journal: Journal, folder: Path, place: World, *, before: int
) -> Any:
    """A trainer of transformers' that makes the better images of the pairs likelier; arguments as for `dpo_trainer`.

    TRL's for this asks a model for its logits.
    """
    from transformers import TrainingArguments

    ids = _ids(pairs.handles, pairs.won)
    with quiet():
        trainer = likelihood_class()(
            model=learner_of(policy),
            args=TrainingArguments(
                **trainer_arguments(config, policy, folder, place, rows=config.batch_size),
                num_train_epochs=config.epochs,
            ),
            train_dataset=[{"input_ids": row, "weight": weight} for row, weight in zip(ids, pairs.weight, strict=True)],
        )
    return _finished(trainer, policy, journal, before=before)


def _pair_trainer(
    own: PairLoss | None,
    config: Rounds,
    policy: Policy,
    pairs: PreferencePairs,
    folder: Path,
    place: World,
    **loss: Any,
) -> Any:
    """A trainer for pairs with a loss of our own, or else TRL's; `loss` is what TRL is told of it."""
    from datasets import Dataset

    learner = learner_of(policy)
    # Under FSDP TRL loads a reference from the hub although none is asked; so it is given an empty one.
    empty = None if learner.trained is policy.trained else Policy(nn.Identity(), policy.statistics, [], policy.sampling)
    with quiet():
        trainer = dpo_class()(
            model=learner,
            ref_model=empty,
            args=trl().DPOConfig(
                **trainer_arguments(config, policy, folder, place, rows=config.batch_size),
                **loss,
                num_train_epochs=config.epochs,
                precompute_ref_log_probs=True,
                use_weighting=True,
                max_length=None,
                disable_dropout=False,
            ),
            data_collator=_collator(pairs),
            train_dataset=Dataset.from_dict({"prompt": list(range(len(pairs.handles)))}),
            processing_class=tokenizer(),
        )
    trainer.own_loss, trainer.ref_model = own, None
    return trainer


def _collator(pairs: PreferencePairs) -> Callable[[list[dict[str, int]]], dict[str, Any]]:
    """From numbers of prompts to all their pairs, as TRL's collator has them: better images first, then the worse."""
    won, lost = _ids(pairs.handles, pairs.won), _ids(pairs.handles, pairs.lost)

    def collate(rows: list[dict[str, int]]) -> dict[str, Any]:
        taken = torch.tensor([row["prompt"] for row in rows])
        ids = torch.cat([won[taken].flatten(0, 1), lost[taken].flatten(0, 1)])  # [2 * B * C, 1 + L]
        image = torch.ones_like(ids)
        image[:, 0] = 0
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "completion_mask": image,
            "ref_chosen_logps": pairs.reference_won[taken].flatten(),
            "ref_rejected_logps": pairs.reference_lost[taken].flatten(),
            "columns": {name: getattr(pairs, name)[taken].flatten() for name in ("margin", "p_won", "weight")},
        }

    return collate


def _ids(handles: Tensor, tokens: Tensor) -> Tensor:
    """[N, C, 1 + L] what TRL takes images [N, C, L] of N prompts for."""
    return torch.cat([handles[:, None, None].expand(*tokens.shape[:2], 1), tokens], dim=2)


def train(trainer: Any, checkpoint: Path | None, *, ends: Sequence[Callable[[int], bool] | None] = ()) -> None:
    """Runs a trainer to its end, from a checkpoint where there is one.

    Args:
        ends: each is called after each update with the trainer's updates so far, and ends the run where it is true.
    """
    for one in filter(None, ends):
        trainer.add_callback(stopper(one))
    module = trainer.model.trained
    training = module.training
    if checkpoint:
        check_has_masters(checkpoint, trainer.model)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        module.train(training)


def release(trainer: Any) -> None:
    """Takes what a trainer has hung on the weights off them, so that another can learn with them (DeepSpeed)."""
    trainer.accelerator.free_memory()


def _finished(trainer: Any, policy: Policy, journal: Journal, *, before: int = 0) -> Any:
    """The trainer with TRL's changes to the policy undone, and with the journal as its only log."""
    from transformers import PrinterCallback

    trainer.model.__dict__.pop("forward", None)  # TRL's fused head, which would ask for hidden states
    if trainer.model.trained is not policy.trained:
        trainer.add_callback(taking_over(policy, trainer.model))  # before what looks at the policy
    begun, policy.finer = policy.finer, {}
    keep_masters(trainer, begun)
    if not before:
        trainer.add_callback(movement(trainer, journal))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder(journal, before))
    return trainer
