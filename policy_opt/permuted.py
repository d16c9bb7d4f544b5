"""Groups that are drawn half for a prompt and half for another order of its things: PeRL (2025), arXiv:2506.14907.

Their rewards are held against the mean of the whole group, so that a wording for which the generator draws worse images
is pulled towards the better ones of the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.permutation import wordings


def other_wordings(prompts: Sequence[str]) -> list[str]:
    """Wordings of the prompts that are not among them, each once."""
    known = set(prompts)
    return list(dict.fromkeys(text for prompt in prompts for text in wordings(prompt) if text not in known))


def draw_permuted(
    generator: Generator, prompts: Sequence[str], *, per_prompt: int, seed: int, sampling: Sampling | None = None
) -> Rollout:
    """As `Generator.sample`, but the second half of each group is of another wording, where the prompt has one.

    Which of several other wordings depends on the seed. Rows tell their own wording in `prompts`, and share the group
    number of the prompt that they were drawn for.

    Args:
        prompts: different ones.
        per_prompt: even.
    """
    half = per_prompt // 2
    asked: list[str] = []
    for prompt in prompts:
        others = wordings(prompt)[1:]
        asked += [prompt, others[seed % len(others)] if others else prompt]
    halves: dict[str, list[Rollout]] = {}
    counts = Counter(asked)
    for count in sorted(set(counts.values())):
        texts = [text for text in counts if counts[text] == count]
        drawn = generator.sample(texts, per_prompt=count * half, seed=seed, sampling=sampling)
        for start in range(0, len(drawn), half):
            halves.setdefault(drawn.prompts[start], []).append(drawn[slice(start, start + half)])
    parts = [halves[text].pop(0) for text in asked]
    return Rollout(
        [prompt for part in parts for prompt in part.prompts],
        torch.arange(len(prompts), device=parts[0].group.device).repeat_interleave(per_prompt),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.logprobs for part in parts]),
        parts[0].sampling,
    )
