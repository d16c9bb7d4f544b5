"""VQAScore with the model that it was published with, CLIP-FlanT5 (Lin et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from rwk.adapters.preprocess import Preprocess
from rwk.adapters.pretrained import load_tokenizer, load_whole, read_shards
from rwk.adapters.published import Origin, fill
from rwk.adapters.squared import SquaredReward
from rwk.rewards.base import RewardSpec

BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
)
AFTER = '\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"


class ClipT5(nn.Module):
    """A T5 that reads the patches of a CLIP in place of a word."""

    def __init__(self, t5: nn.Module, vision: nn.Module, width: int, seen: int) -> None:
        super().__init__()
        self.t5, self.vision = t5, vision
        self.projector = nn.Sequential(nn.Linear(seen, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, pixels: Tensor, before: Tensor, after: Sequence[Tensor], answer: Tensor) -> Tensor:
        """[B, A, V] float32 logits of the ids [A] of an answer, each given those before it.

        Args:
            pixels: [B, 3, size, size], normalised.
            before: ids of the text before the image.
            after: ids of each text after it.
        """
        shared: Any = self.t5.get_submodule("shared")
        patches = self.vision(pixels.to(shared.weight.dtype), output_hidden_states=True).hidden_states[-2][:, 1:]
        images = self.projector(patches)  # [B, N, D], without CLIP's class token, from its last layer but one
        rows = [torch.cat([shared(before), image, shared(ids)]) for image, ids in zip(images, after, strict=True)]
        mask = pad_sequence([torch.ones(len(row), device=row.device) for row in rows], batch_first=True)  # [B, L]
        heard = pad(answer[:-1], (1, 0)).expand(len(rows), -1)  # the decoder begins with id 0
        made = self.t5(
            inputs_embeds=pad_sequence(rows, batch_first=True),
            attention_mask=mask.bool(),
            decoder_input_ids=heard,
            use_cache=False,
        )
        logits: Tensor = made.logits
        return logits.float()


class FlanT5(SquaredReward):
    """exp of the mean of log P("Yes") and log P(end | "Yes"), for "Does this figure show ...?".

    So the score is the geometric mean of two probabilities, not P("Yes"). From `zhiqiulin/clip-flant5-xxl`, with the
    tokenizer of `google/flan-t5-xxl`; in bfloat16, as published, or another type. The image is made a square with a
    border in CLIP's mean colour, then resized to 336 pixels. Traps: the two texts around the image each end in
    `</s>`; the head of T5 is not tied to its embeddings, though transformers ties them; CLIP's class token is left
    out; the softmax is over the tokenizer's 32100 words, not the 32128 rows of the head.

    `score_pixels` resizes floats, which differ from Pillow's rounded weights by at most 2 of 255 grey levels.
    """

    spec = RewardSpec(
        "vqascore.flant5", "mean P of Yes and end", 0, 1, "Apache-2.0", "arXiv:2404.01291", differentiable=True
    )
    origin: ClassVar[Origin] = Origin("zhiqiulin/clip-flant5-xxl", "pytorch_model.bin.index.json", "Apache-2.0", 23_000)
    preprocess = Preprocess(336, "squash")
    border = (122, 116, 104)  # CLIP's mean colour, cut to whole numbers
    context = 2048
    drift = {"bfloat16": 6e-2}
    precision_note = "that of its logarithm, which moves at least as much; measured on 4 of its 24 layers a side"
    tolerance = 2e-4
    words_of: ClassVar[str] = "google/flan-t5-xxl"
    widths: ClassVar[tuple[int, int, int]] = (4096, 10240, 64)
    """Of T5: hidden, feed-forward, heads."""
    tokenizer: Any

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "bfloat16",
    ) -> None:
        """
        Args:
            weights: a folder with the published files and perhaps the tokenizer's; by default both come from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            dtype: of the network: "bfloat16", "float16" or "float32".

        Raises:
            ValueError: for files that are not this checkpoint.
            RunFailed: where the checkpoint or the tokenizer cannot be had.
        """
        tensors = read_shards(self.spec.name, self.origin, weights, revision)
        self.tokenizer = load_tokenizer(self.spec.name, self.words_of, weights)
        self._take(self._network(tensors, getattr(torch, dtype)), device)

    @classmethod
    def build(cls) -> ClipT5:
        from transformers import CLIPVisionModel, T5ForConditionalGeneration

        t5, vision = cls.configs()
        network = ClipT5(T5ForConditionalGeneration(t5), CLIPVisionModel(vision), t5.d_model, vision.hidden_size)
        head: Any = network.t5.get_submodule("lm_head")
        head.weight = nn.Parameter(head.weight.detach().clone())  # no longer that of the embeddings
        return network

    @classmethod
    def configs(cls) -> tuple[Any, Any]:
        """transformers' configurations of T5 and of CLIP's image side."""
        from transformers import CLIPVisionConfig, T5Config

        width, inner, heads = cls.widths
        t5_config: Any = T5Config
        t5 = t5_config(
            d_model=width,
            d_ff=inner,
            d_kv=64,
            num_heads=heads,
            num_layers=24,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        )
        return t5, vision

    @classmethod
    def _network(cls, tensors: dict[str, Tensor], dtype: torch.dtype) -> ClipT5:
        """The network filled with the published tensors, every one of them."""
        from transformers import CLIPVisionModel, T5ForConditionalGeneration

        t5, vision = cls.configs()
        parts = cls.parts_of(tensors)
        head = parts["t5"].pop("lm_head.weight", torch.empty(0))
        # Not through `build`, which would draw eleven billion random numbers first.
        loaded = load_whole(
            cls.spec.name, T5ForConditionalGeneration, None, config=t5, state_dict=parts["t5"], dtype=dtype
        )
        loaded.lm_head.weight = nn.Parameter(torch.empty_like(loaded.lm_head.weight))
        with torch.random.fork_rng(devices=[]):
            network = ClipT5(loaded, CLIPVisionModel(vision), t5.d_model, vision.hidden_size).to(dtype)
        fill(cls.spec.name, network.t5.get_submodule("lm_head"), {"weight": head} if len(head) else {})
        fill(cls.spec.name, network.vision, parts["vision"])
        fill(cls.spec.name, network.projector, parts["projector"])
        return network

    @classmethod
    def parts_of(cls, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The published tensors by part of the network, under the keys of transformers 5."""
        parts: dict[str, dict[str, Tensor]] = {"t5": {}, "vision": {}, "projector": {}}
        for key, tensor in tensors.items():
            if key.startswith("mm_projector."):
                parts["projector"][key.removeprefix("mm_projector.")] = tensor
            elif key.startswith("vision_tower."):
                inner = key.removeprefix("vision_tower.vision_tower.vision_model.")
                if inner != "embeddings.position_ids":  # 0, 1, 2 ..., which older releases saved
                    parts["vision"][inner] = tensor
            elif not key.endswith("embed_tokens.weight"):  # copies of `shared`
                parts["t5"][key] = tensor
        return parts

    @classmethod
    def tiny(cls) -> Self:
        from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

        tokenizer = tiny_tokenizer()
        t5_config: Any = T5Config
        t5 = t5_config(
            vocab_size=len(tokenizer) + 4,
            d_model=32,
            d_ff=48,
            d_kv=8,
            num_heads=4,
            num_layers=1,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = ClipT5(T5ForConditionalGeneration(t5), CLIPVisionModel(vision), 32, 32)
            for weight in network.parameters():
                nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
        return cls.of(network, tokenizer=tokenizer, preprocess=Preprocess(28, "squash"))

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        before, answer = (self._ids(text) for text in (BEFORE, ANSWER))
        room = self.context - len(before) - 1  # the image counts as one token
        after = [self._ids(AFTER.replace("{prompt}", prompt)) for prompt in prompts]
        self.warn_of_cut(prompts, [len(before) + 1 + len(ids) for ids in after])
        logits = self.network(pixels, before, [ids[:room] for ids in after], answer)  # [B, A, V]
        log_probs = logits[:, :, : len(self.tokenizer)].log_softmax(2)
        score: Tensor = log_probs[:, range(len(answer)), answer].mean(1).exp()
        return score

    def _ids(self, text: str) -> Tensor:
        """[L] ids of a text, `</s>` the last."""
        return torch.tensor(self.tokenizer(text).input_ids, device=self.device)


class FlanT5Xl(FlanT5):
    """`vqascore.flant5` with the smaller T5, `zhiqiulin/clip-flant5-xl`."""

    spec = RewardSpec(
        "vqascore.flant5_xl", "mean P of Yes and end", 0, 1, "Apache-2.0", "arXiv:2404.01291", differentiable=True
    )
    origin = Origin("zhiqiulin/clip-flant5-xl", "pytorch_model.bin.index.json", "Apache-2.0", 6_500)
    drift = {"bfloat16": 9.9e-3}
    precision_note = "that of its logarithm, which moves at least as much"
    words_of = "google/flan-t5-xl"
    widths = (2048, 5120, 32)


def tiny_tokenizer() -> Any:
    """T5's tokenizer with letters, some words and nothing else."""
    from transformers import T5Tokenizer

    words = ["▁" + word for word in ("Yes", "yes", "no", "figure", "show", "Please", "answer", "a", "the", "USER:")]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(word, -3.0) for word in words] + [(chr(code), -4.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)
