"""The GIT judge that T2I-R1 was trained with (Jiang et al., 2025): is what the prompt names in the picture?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwk.adapters.blip_towers import randomised, small_tokenizer
from rwk.adapters.blip_vqa import PLACES
from rwk.adapters.clip_towers import seeded
from rwk.adapters.noun_phrases import noun_phrases
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.pretrained import load_tokenizer, read_shards
from rwk.adapters.published import Origin, PublishedReward, fill
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.precision import in_float32
from rwk.rewards.staged import Ready


class GitVqa(PublishedReward):
    """The mean, over the prompt's noun phrases, of `p(yes) / (p(yes) + p(no))` for the question "PHRASE?".

    p is the distribution of the word that follows [CLS] and the question, from one forward pass of GIT-large for
    questions (`microsoft/git-large-vqav2`), which reads the centre of a picture at 420 pixels (the margin is rounded
    down). "top", "the side", "the left" and "the right" are not asked about.

    T2I-R1 reads noun phrases out of a file that a language model wrote with its training prompts, those with an
    attribute where there are any. The default here is the rule of `noun_phrases`; `phrases=` takes another. For spatial
    and counting prompts T2I-R1 gives 0 without looking at the picture, which is left out here, and 1 where there is no
    phrase, which here is no score. `score_pixels` stands from `score` as far as float32 bicubic stands from Pillow's on
    8 bits.
    """

    spec = RewardSpec(
        "git_vqa.t2i_r1", "mean P(yes) among yes and no", 0, 1, "MIT", "arXiv:2505.00703", differentiable=True
    )
    origin = Origin("microsoft/git-large-vqav2", "pytorch_model.bin", "MIT", 1580)
    preprocess = Preprocess(420, rounding="floor")
    drift = {"bfloat16": 2.0e-3}
    context = 1024
    tolerance = 0.02
    example_prompts = (*(prompt for prompt in Reward.example_prompts if prompt), "a green bench and a blue bowl")
    phrases: Callable[[str], Sequence[str]] = staticmethod(noun_phrases)
    tokenizer: Any

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        phrases: Callable[[str], Sequence[str]] = noun_phrases,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or its folder; the tokenizer is looked for beside it. By default both come
                from the hub.
            phrases: the noun phrases of a prompt.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.

        Raises:
            ValueError: for a file that is not this checkpoint.
            RunFailed: where the checkpoint or the tokenizer cannot be had.
        """
        tensors = read_shards(self.spec.name, self.origin, weights, revision)
        self.tokenizer = load_tokenizer(self.spec.name, self.origin.hub, weights, revision)
        self.phrases = phrases
        network = self.build()
        fill(self.spec.name, network, self.converted(tensors))
        self._take(network, device)

    @classmethod
    def build(cls) -> nn.Module:
        vision = {"image_size": 420, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
        return network({**vision, "num_hidden_layers": 24, "num_attention_heads": 16})

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors less the position numbers that transformers wrote into files of its time."""
        return {key: value for key, value in tensors.items() if not key.endswith("position_ids")}

    @classmethod
    def tiny(cls) -> GitVqa:
        tokenizer = small_tokenizer((*cls.example_prompts, "yes no ?"))
        layers = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        with seeded():
            made = network({**layers, "image_size": 32, "patch_size": 8}, **layers, **ends, vocab_size=len(tokenizer))
        return cls.of(randomised(made), preprocess=Preprocess(32, rounding="floor"), tokenizer=tokenizer)

    def questions(self, prompt: str) -> list[str]:
        """What is asked about a picture for that prompt; empty where it names nothing."""
        return [f"{phrase}?" for phrase in self.phrases(prompt) if phrase not in PLACES]

    def refusal(self, prompt: str) -> str:
        return "" if self.questions(prompt) else "the prompt has no noun phrase, so there is nothing to ask"

    def score_ready(self, ready: Sequence[Ready], prompts: Sequence[str]) -> Scores:
        values, notes = super().score_ready(ready, prompts)
        return Scores(values, [note or self.refusal(prompt) for note, prompt in zip(notes, prompts, strict=True)])

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.questions(prompt) for prompt in prompts]
        scores = pixels.new_full([len(prompts)], torch.nan)
        for count in sorted({len(questions) for questions in asked} - {0}):
            rows = [row for row, questions in enumerate(asked) if len(questions) == count]
            # The network is given every picture once and repeats them in turns, so the questions come in turns.
            texts = [asked[row][turn] for turn in range(count) for row in rows]
            scores[rows] = self.answers(pixels[rows], texts).view(count, len(rows)).mean(0)
        return scores

    def answers(self, pixels: Tensor, questions: Sequence[str]) -> Tensor:
        """[Q] probability of yes, of yes or no; question i is about picture i modulo the number of pictures."""
        ids, lengths = self._ids(questions)
        yes, no = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        # Text looks back only, so what fills a question up has no say. Counted from the end, as pictures stand before.
        ends = lengths - 1 - ids.shape[1]
        network: Any = self.network
        states = network.git(input_ids=ids, pixel_values=pixels, use_cache=False).last_hidden_state
        last = in_float32(network.output, states[torch.arange(len(ids), device=ids.device), ends])  # [Q, V]
        return (last[:, yes] - last[:, no]).sigmoid()

    def _ids(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids [Q, L] of [CLS] and each question, filled up on the right, and how many [Q] are its own."""
        whole = [
            [self.tokenizer.cls_token_id, *ids]
            for ids in self.tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
        ]
        self.warn_of_cut(questions, [len(ids) for ids in whole])
        rows = [torch.tensor(ids[: self.context], device=self.device) for ids in whole]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return padded, torch.tensor([len(row) for row in rows], device=self.device)


def network(vision: dict[str, int], **text: Any) -> nn.Module:
    """GIT of transformers, its weights random: CLIP's vision transformer of that shape, and a text decoder."""
    from transformers import GitConfig, GitForCausalLM

    return GitForCausalLM(GitConfig(vision_config=vision, **text))
