"""Text and image apart, in a loss and in what steers the entropy, where a generator writes a text before it draws.

With n words and m codes in a row of L tokens, an advantage A and a share s, token t counts w_t A, so that each modality
is a mean over its own tokens, and 576 codes do not drown 60 words. What was no choice, such as padding, is neither:

    w_t = s L / n for a word, (1 - s) L / m for a code, 0 for neither, of mean 1                  `modality_weights`

For each modality m, with its mean entropy H_m and the target H*_m, the loss gets alpha_m H_m, where

    alpha_m = sinh(psi_m),    psi_m descends by Adam along - alpha_m (H_m - H*_m), within the limit     `EntropyControl`

so alpha falls below 0, and entropy is paid for, while it is too low. ReasonGen-R1 (2025), arXiv:2505.24875, at targets
of 2 nats for text and 7 for the image, a rate of 5e-5 and a limit of 5e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import asinh

import torch
from torch import Tensor

from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.followers import Follower
from rwk.policy_opt.generator import Generator, GeneratorSpec
from rwk.policy_opt.policy import Policy, World

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam."""


def slots_of(spec: GeneratorSpec) -> list[slice]:
    """The slots of each modality: text, where there is any, and image."""
    return [slice(0, spec.text), slice(spec.text, spec.tokens)] if spec.text else [slice(0, spec.tokens)]


def modality_weights(spec: GeneratorSpec, share: float, chosen: Tensor) -> Tensor:
    """[B, L] how much each token counts, of mean 1 in every row.

    Args:
        share: of the text in the loss, 0..1.
        chosen: [B, L] as `Generator.chosen` has it.

    Raises:
        ValueError: where the generator writes no text.
    """
    if not spec.text:
        raise ValueError(f"text_weight is of a generator that writes a text first, got {spec.name}; leave it out.")
    parts = [chosen[:, slots].float() for slots in slots_of(spec)]
    shares = (share, 1 - share)
    return torch.cat(
        [s * spec.tokens * part / part.sum(1, keepdim=True) for s, part in zip(shares, parts, strict=True)], 1
    )


class EntropyControl(Follower):
    """Steers the mean entropy of each modality to its target; its state is kept with the checkpoints of the run."""

    def __init__(
        self, generator: Generator, targets: Sequence[float], place: World, *, rate: float, limit: float
    ) -> None:
        """
        Args:
            generator: whose modalities they are.
            targets: nats, one for each modality.
            place: the processes, which all come to the same state.
            rate: of Adam.
            limit: the largest alpha, and with a minus the smallest.

        Raises:
            ValueError: where there is not a target for each modality.
        """
        spec, self._chosen = generator.spec, generator.chosen
        self._slots = slots_of(spec)
        if len(targets) != len(self._slots):
            raise ValueError(
                f"entropy_targets must be one for each modality of {spec.name}, which has {len(self._slots)}, got "
                f"{len(targets)}."
            )
        zeros = torch.zeros(len(targets))
        state = {"psi": zeros, "mean": zeros.clone(), "square": zeros.clone(), "count": torch.zeros(1)}
        super().__init__("entropy", state, every=1, share=1.0)
        self._targets, self._place, self._rate, self._most = torch.tensor(targets), place, rate, asinh(limit)
        self._seen: list[Tensor] = []

    @property
    def alpha(self) -> Tensor:
        """[M] what a nat costs in each modality."""
        return self.tensors["psi"].sinh()

    def term(self, entropy: Tensor, tokens: Tensor) -> Tensor:
        """[] what the loss of some rows gets; they count for the next step.

        Args:
            entropy: [B, L] nats, with gradient.
            tokens: [B, L] at which it is.
        """
        chosen = self._chosen(tokens)
        means = torch.stack([entropy[:, slots][chosen[:, slots]].mean() for slots in self._slots])
        self._seen.append(means.detach())
        return (self.alpha.to(means.device) * means).sum()

    def follow(self, policy: Policy) -> None:
        """One step of psi by what was seen since the last one, in all processes."""
        seen = self._place.gather(torch.stack(self._seen)).mean(0)
        self._seen.clear()
        psi, mean, square, count = (self.tensors[name] for name in ("psi", "mean", "square", "count"))
        slope = -psi.cosh() * (seen - self._targets)
        count += 1
        mean.lerp_(slope, 1 - BETAS[0])
        square.lerp_(slope.square(), 1 - BETAS[1])
        step = (mean / (1 - BETAS[0] ** count)) / ((square / (1 - BETAS[1] ** count)).sqrt() + EPSILON)
        psi.sub_(self._rate * step).clamp_(-self._most, self._most)


def entropy_control(config: Grpo, generator: Generator, place: World) -> EntropyControl | None:
    """What steers the entropy in a run; None where nothing is to."""
    if not config.entropy_targets:
        return None
    return EntropyControl(
        generator, config.entropy_targets, place, rate=config.entropy_rate, limit=config.entropy_limit
    )
