"""The run around GRPO: its folder, its reference and followers, what it resumes, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from rwk.policy_opt.advantage import Weighted, answers_an_image
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Curriculum
from rwk.policy_opt.followers import average_of, moving_reference
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.groups import Groups, drawn_at_once
from rwk.policy_opt.grpo import Lessons
from rwk.policy_opt.guards import Guards
from rwk.policy_opt.journal import (
    Trained,
    ends_after,
    last_checkpoint,
    publish,
    start,
    step_of,
)
from rwk.policy_opt.ledger import Ledger, prompts_of_pass
from rwk.policy_opt.modalities import entropy_control
from rwk.policy_opt.permuted import other_wordings
from rwk.policy_opt.policy import Policy, trainable, world
from rwk.policy_opt.run_options import Run
from rwk.policy_opt.sub_policies import by_recipe, recipes_of
from rwk.policy_opt.token_weights import check_token_weights
from rwk.policy_opt.watch import Watch


def learn_from_groups(
    config: Grpo,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    run: Run,
) -> Trained:
    """Tunes the generator, in place and as `out/generator`, and writes `out/metrics.jsonl` and `out/ledger.jsonl`.

    In several processes each draws for its share of the prompts; the images do not depend on their number.

    Args:
        rewards: combined by their weights; those of weight 0 are only measured, or learnt from later, where
            `config.then` names them.
        prompts: at least `prompts_per_step` different ones.
        run: its folder, and what else it is told; it resumes after the last checkpoint.

    Raises:
        ValueError: for numbers that do not fit together.
        RunFailed: when nothing is learnt from the start on, but in a later part, or the gradient is not a number.
    """
    from rwk.policy_opt import trl_bridge as trl

    place = world(next(generator.module.parameters()).device)
    table = list(dict.fromkeys(prompts))
    check_groups(config, len(table), place.size)
    check_token_weights(config.token_weights, generator)
    stages = Curriculum(config, rewards)
    out, recipe = run.out, run.sampling or generator.spec.sampling
    ledger = Ledger(out / "ledger.jsonl", config, table, rewards, main=place.rank == 0)
    guards = Guards(config.collapse, min(config.epsilon, config.epsilon_high or config.epsilon), later=run.later)
    journal = start(out, place, resume=run.resume, progress=run.progress, guards=guards)
    journal.total = config.steps
    folder = out / "checkpoints"
    checkpoint = last_checkpoint(folder) if run.resume else None
    journal.forget_after(step_of(checkpoint))
    ledger.restore(step_of(checkpoint))
    all_drawn = _all_drawn(config, ledger)
    if all_drawn and checkpoint and all_drawn(step_of(checkpoint)):
        config = replace(config, steps=step_of(checkpoint))
    keep = config.beta > 0 or config.kl_every > 0 or config.token_weights == "gcpo"
    with trainable(generator, config, keep=keep) as reference:
        known = table + other_wordings(table) if config.permute else table
        recipes = recipes_of(config.sub_policies, recipe)
        policy = Policy(generator.module, by_recipe(generator.statistics), known, recipe, recipes)
        moving, mover = moving_reference(config, generator)
        average = average_of(config, policy)
        anchor = moving or reference
        other = Policy(nn.Identity(), by_recipe(anchor), known, recipe, recipes) if anchor and config.beta else None
        watch = Watch(run.watched, config, generator, rewards, recipe, out, policy, journal, place, reference)
        groups = Groups(config, generator, policy, table, recipe, recipes, reference, journal, ledger, place)
        lessons = Lessons(config, stages, groups, generator, reference, journal)
        schedule = prompt_schedule(config, len(table))
        length = generator.spec.tokens
        trainer = trl.grpo_trainer(config, policy, other, lessons, schedule, length, journal, folder, place)
        trainer.entropy_control = control = entropy_control(config, generator, place)
        for follower in filter(None, (mover, average, control)):
            follower.restore(folder, step_of(checkpoint))
            trainer.add_callback(follower.callback(policy, place))
        watch.begin(step_of(checkpoint))
        if watch.ended is None:
            limit = ends_after(journal, run.seconds, place)
            trl.train(trainer, checkpoint, ends=[watch.every(config.watch_every), limit, all_drawn])
            trl.release(trainer)
        watch.conclude()
        if average and watch.ended is None:
            average.give(policy)
    open_ended = run.seconds is not None or config.max_images
    steps = watch.ended or (journal.last if open_ended else config.steps)
    tuned = publish(generator, out / "generator", place)
    images, tokens = ledger.images, config.rows * steps * length
    took = time.perf_counter() - journal.started
    return Trained(
        tuned,
        journal.path,
        steps,
        images,
        images * answers_an_image(rewards, config.group_size),
        tokens,
        took,
        place.size,
        watch.images,
        watch.ended is not None,
        reference_tokens(config, steps, length) + watch.referred * length,
    )


def _all_drawn(config: Grpo, ledger: Ledger) -> Callable[[int], bool] | None:
    """For `trl_bridge.train`: whether the images of the run are drawn and learnt; None where their number is open."""
    if not config.max_images:
        return None
    return lambda step: step % config.num_iterations == 0 and ledger.images + config.rows > config.max_images


def reference_tokens(config: Grpo, steps: int, length: int) -> int:
    """Tokens that a reference reads in that many updates: of each draw for its pull, for gcpo, and where measured."""
    draws = range(0, steps, config.num_iterations)
    measured = sum(step % config.kl_every == 0 for step in draws) if config.kl_every else 0
    always = (config.beta > 0) + (config.token_weights == "gcpo")
    return (measured + always * len(draws)) * config.rows * length


def prompt_schedule(config: Grpo, prompts: int) -> list[int]:
    """Handles of the prompts of all draws in a row: all, in a new order each time round, and none twice in a draw."""
    order = torch.Generator().manual_seed(config.seed)
    schedule: list[int] = []
    while len(schedule) < config.draws * config.prompts_per_step:
        schedule += prompts_of_pass(order, prompts, config.prompts_per_step)
    return schedule[: config.draws * config.prompts_per_step]


def check_groups(config: Grpo, prompts: int, processes: int) -> None:
    """Raises ValueError where so many prompts and processes do not make the groups of a step."""
    if prompts < config.prompts_per_step:
        raise ValueError(
            f"grpo needs at least prompts_per_step different prompts, got {prompts} for {config.prompts_per_step}; "
            f"give more prompts or lower prompts_per_step."
        )
    if config.prompts_per_step % processes:
        raise ValueError(
            f"prompts_per_step must be a multiple of the number of processes, got {config.prompts_per_step} and "
            f"{processes}; each process draws whole groups."
        )
    own = config.prompts_per_step // processes
    if config.score_meanwhile and drawn_at_once(config, own) >= own:
        raise ValueError(
            f"score_meanwhile needs two draws of a step in each process, got prompts_per_draw "
            f"{config.prompts_per_draw} and {own} prompts a process; lower prompts_per_draw, draw for more prompts, or "
            f"leave it out."
        )
