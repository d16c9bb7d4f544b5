"""SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025): the log-odds that a prompt belongs to a picture."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rwk.adapters.clip_towers import TowersReward, cosine, seeded
from rwk.adapters.preprocess import HALF, Preprocess
from rwk.adapters.published import Origin, beside, hub_is_near
from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.errors import RunFailed

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_BARE = str.maketrans("", "", string.punctuation)


def network(shape: dict[str, int], size: int, patch: int, words: int) -> nn.Module:
    """SigLIP of transformers, its weights random.

    Args:
        shape: of the layers of both towers, in the terms of transformers.
        size: side of the pictures in pixels.
        patch: side of a patch in pixels.
        words: pieces in the vocabulary.
    """
    from transformers import SiglipConfig, SiglipModel

    ends = {"bos_token_id": None, "eos_token_id": 1}
    text = {**shape, **ends, "vocab_size": words, "projection_size": shape["hidden_size"]}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**shape, "image_size": size, "patch_size": patch}))


def small_tokenizer(texts: Sequence[str], pad: str) -> Any:
    """A tokenizer of the words in these texts, with `</s>` as its id 1; nothing is loaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [word for text in texts for word in text.lower().translate(_BARE).split()]
    ids = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *words]))}
    made = Tokenizer(models.WordLevel(ids, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token=pad, unk_token="<unk>")


class Siglip(TowersReward):
    """SigLIP ViT-B/16 at 224 pixels: `scale * cos(image, prompt) + bias`, scale and bias being part of the weights.

    The sigmoid of a score is the probability that the prompt belongs to the picture, as the network was trained. It is
    low for most pairs; the order of pictures for one prompt is that of their cosines.

    A picture is squashed to a square. A prompt is read in small letters and without punctuation, as pieces, end of text
    and padding, always 64 in all; without the padding the scores are wrong, since the text is pooled at the last of
    them. Its ids are those of transformers' tokenizer; open_clip also undoes HTML and curly quotes and takes _ for a
    space, and what spells out a control token is read as words. The vocabulary comes from the hub, and needs the
    packages sentencepiece and protobuf. `score_pixels` stands from `score` as far as float32 bicubic from Pillow's on
    8 bits.
    """

    spec = RewardSpec(
        "siglip.b16_224", "log-odds", -math.inf, math.inf, "Apache-2.0", "arXiv:2303.15343", differentiable=True
    )
    origin = Origin("google/siglip-base-patch16-224", "model.safetensors", "Apache-2.0", 813)
    preprocess = Preprocess(224, fit="squash", mean=HALF, std=HALF)
    context = 64
    tolerance = 0.5
    drift = {"bfloat16": 5.7e-2}
    shape: ClassVar[dict[str, int]] = BASE
    patch: ClassVar[int] = 16
    words: ClassVar[int] = 32000
    pad: ClassVar[str] = "</s>"
    """What fills a prompt up."""

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it; by default it comes from the hub.
            tokenizer: folder or hub repository of the vocabulary; by default it is looked for beside
                `weights`, and then comes from the published repository.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
        """
        super().__init__(weights=weights, revision=revision, device=device)
        self.vocabulary = tokenizer or beside(weights, "tokenizer_config.json"), revision

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the published repository, loaded when the first prompt comes."""
        from transformers import AutoTokenizer

        source, revision = self.vocabulary
        try:
            if source is not None:
                return AutoTokenizer.from_pretrained(str(source))
            near = hub_is_near()
            return AutoTokenizer.from_pretrained(self.origin.hub, revision=revision, local_files_only=not near)
        except (OSError, ValueError, ImportError) as error:
            raise RunFailed(
                f"{self.spec.name} needs the tokenizer of {source or self.origin.hub}, which cannot be loaded "
                f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.100}); install sentencepiece and "
                f"protobuf, and with a network unset HF_HUB_OFFLINE; without, copy its files beside the weights and "
                f"name their folder as {self.spec.name}@PATH."
            ) from error

    @classmethod
    def build(cls) -> nn.Module:
        return network(cls.shape, cls.preprocess.size, cls.patch, cls.words)

    @classmethod
    def tiny(cls) -> Siglip:
        words = small_tokenizer(Reward.example_prompts, cls.pad)
        with seeded():
            made = network(TINY, 32, 8, len(words))
        return cls.of(made, preprocess=replace(cls.preprocess, size=32), tokenizer=words)

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors less the position numbers that transformers wrote into files of its time."""
        return {key: value for key, value in tensors.items() if not key.endswith("position_ids")}

    @staticmethod
    def canonical(prompt: str) -> str:
        """The prompt as the network was trained to read it."""
        return " ".join(prompt.translate(_BARE).lower().split())

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        scale, bias = (self.network.get_parameter(name) for name in ("logit_scale", "logit_bias"))
        return scale.exp() * cosine(image, text) + bias

    def image_features(self, pixels: Tensor) -> Tensor:
        towers: Any = self.network
        features: Tensor = towers.vision_model(pixel_values=pixels).pooler_output
        return features

    def text_features(self, prompts: list[str]) -> Tensor:
        towers: Any = self.network
        features: Tensor = towers.text_model(input_ids=self.ids(prompts).to(self.device)).pooler_output
        return features

    def ids(self, prompts: list[str]) -> Tensor:
        """[B, 64] the pieces of every prompt, end of text, and padding on the right."""
        texts = [self.canonical(prompt) for prompt in prompts]
        pieces = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        self.warn_of_cut(prompts, [len(row) + 1 for row in pieces])
        ids = torch.full([len(prompts), self.context], self.tokenizer.pad_token_id)
        for row, found in zip(ids, pieces, strict=True):
            read = [*found[: self.context - 1], self.tokenizer.eos_token_id]
            row[: len(read)] = torch.tensor(read)
        return ids


class SiglipLarge(Siglip):
    """SigLIP SoViT-400M/14 at 384 pixels, the largest of its kind; the formula of `siglip.b16_224`."""

    spec = RewardSpec(
        "siglip.so400m_14_384", "log-odds", -math.inf, math.inf, "Apache-2.0", "arXiv:2303.15343", differentiable=True
    )
    origin = Origin("google/siglip-so400m-patch14-384", "model.safetensors", "Apache-2.0", 3512)
    drift = {"bfloat16": 4.0e-2}
    preprocess = Preprocess(384, fit="squash", mean=HALF, std=HALF)
    shape = SO400M
    patch = 14


class Siglip2(Siglip):
    """SigLIP 2 ViT-B/16 at 224 pixels: the formula of `siglip.b16_224`, with Gemma's vocabulary, in many languages.

    A picture is squashed with a bilinear filter, where SigLIP has a bicubic one. A prompt is read in small letters,
    which its authors ask for and older tokenizers leave to the caller; punctuation stays, which open_clip takes out. It
    ends with the end of text even where it is cut, and does not start with Gemma's beginning of text.
    """

    spec = RewardSpec(
        "siglip2.b16_224", "log-odds", -math.inf, math.inf, "Apache-2.0", "arXiv:2502.14786", differentiable=True
    )
    origin = Origin("google/siglip2-base-patch16-224", "model.safetensors", "Apache-2.0", 1501)
    drift = {"bfloat16": 4.7e-2}
    preprocess = Preprocess(224, fit="squash", interpolation="bilinear", mean=HALF, std=HALF)
    words = 256000
    pad = "<pad>"

    @staticmethod
    def canonical(prompt: str) -> str:
        return prompt.lower()


class Siglip2Large(Siglip2):
    """SigLIP 2 SoViT-400M/14 at 384 pixels; the formula and the traps of `siglip2.b16_224`."""

    spec = RewardSpec(
        "siglip2.so400m_14_384", "log-odds", -math.inf, math.inf, "Apache-2.0", "arXiv:2502.14786", differentiable=True
    )
    origin = Origin("google/siglip2-so400m-patch14-384", "model.safetensors", "Apache-2.0", 4544)
    drift = {"bfloat16": 3.9e-2}
    preprocess = Preprocess(384, fit="squash", interpolation="bilinear", mean=HALF, std=HALF)
    shape = SO400M
    patch = 14
