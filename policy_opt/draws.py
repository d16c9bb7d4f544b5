"""What a round drew, scored and paired, as it lies on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rwk.policy_opt.calibrated import q
from rwk.policy_opt.configs import Rounds
from rwk.policy_opt.pairs import PreferencePairs, filled


@dataclass(frozen=True)
class Draws:
    """Scored images of a round, row by row in whole groups, and the pairs made of them; as it lies on disk."""

    handles: Tensor
    """[B] long: index of the prompt."""
    tokens: Tensor
    """[B, L] long."""
    scores: Tensor
    """[B, R] float32."""
    orders: Tensor
    """[B, J, 2] float32, of the rewards that are pair judges, as in `advantage.Columns`."""
    reward: Tensor
    """[B] float32, what the pairs were made by."""
    won: Tensor
    """[P] long: row of the better image."""
    lost: Tensor
    """[P] long."""
    reference_won: Tensor
    """[P] float32: log-probability of the better image under the reference, by teacher forcing."""
    reference_lost: Tensor
    """[P] float32."""
    drift: Tensor
    """[P] float32: nats a token, as in `off_policy`, of the pair's two images."""
    gap: Tensor
    """[P] float32: likewise, by which the sampler's log-probabilities are above those that are trained."""

    def updates(self, config: Rounds) -> int:
        """Updates that one round makes of these pairs."""
        return config.epochs * -(-len((self.won // config.group_size).unique()) // config.batch_size)

    def preferences(self, config: Rounds, unit: float | None) -> PreferencePairs:
        """The pairs, prompt by prompt, as a trainer takes them: the last update filled up with the first prompts.

        Args:
            unit: margin that makes log-odds of 1, where labels are to be soft.
        """
        pairs, weight = filled(self.won // config.group_size)
        taken = torch.arange(-(-len(pairs) // config.batch_size) * config.batch_size) % len(pairs)
        pairs, weight = pairs[taken], weight[taken]
        won, lost = self.won[pairs], self.lost[pairs]
        margin = self.reward[won] - self.reward[lost]
        return PreferencePairs(
            handles=self.handles[won[:, 0]],
            won=self.tokens[won],
            lost=self.tokens[lost],
            reference_won=self.reference_won[pairs],
            reference_lost=self.reference_lost[pairs],
            margin=margin,
            p_won=torch.ones_like(margin) if unit is None else q(margin, unit),
            weight=weight,
        )


def joined(parts: list[Draws]) -> Draws:
    """Draws in one, rows of pairs counted on."""
    columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    before = 0
    for index, part in enumerate(parts):
        for name in ("won", "lost"):
            columns[name][index] = columns[name][index] + before
        before += len(part.tokens)
    return Draws(**{name: torch.cat(column) for name, column in columns.items()})


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a file that is there either whole or not at all."""
    partial = path.with_suffix(".tmp")
    save_file(tensors, partial)
    os.replace(partial, path)
