"""BLIP as rewards use it: a picture's tokens, and the text that looks at them; with BERT's tokenizer."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rwk.adapters.clip_towers import seeded
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import PublishedReward, beside
from rwk.rewards.base import Reward
from rwk.rewards.errors import RunFailed
from rwk.rewards.precision import in_float32
from rwk.rewards.tunable import HeadKind, ScaledHead, own_head

BERT = "google-bert/bert-base-uncased"
"""Repository on the Hugging Face hub that holds BERT's vocabulary."""
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = (
    (r"\bcls_token$", "embeddings.class_embedding"),
    (r"\bpos_embed$", "embeddings.position_embedding"),
    (r"\bpatch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"\bblocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^norm\.", "post_layernorm."),
)
"""Names of timm's vision transformer, and what transformers calls them; first to last."""


def vision_tower(size: int, **shape: Any) -> nn.Module:
    """A vision transformer with patches of 16 pixels, for pictures of `size` pixels a side; epsilon as in timm."""
    from transformers import BlipVisionConfig, BlipVisionModel

    return BlipVisionModel(BlipVisionConfig(image_size=size, patch_size=16, layer_norm_eps=1e-6, **shape))


def text_config(width: int, **shape: Any) -> Any:
    """BERT-base that looks at states of that width; the last two rows of its vocabulary are [DEC] and [ENC]."""
    from transformers import BlipTextConfig

    return BlipTextConfig(**({"num_attention_heads": 12, "encoder_hidden_size": width} | shape))


def text_tower(width: int, **shape: Any) -> nn.Module:
    """BERT that reads a picture by cross-attention in every layer."""
    from transformers import BlipTextModel

    return BlipTextModel(text_config(width, **shape), add_pooling_layer=False)


def tower_keys(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a file in BLIP's layout under the names of this module's networks, where `vision` is the picture's.

    Left out are the numbers of positions, and the projections for contrastive learning, which no score uses.
    """
    named = {}
    for key, value in tensors.items():
        key = key.removeprefix(prefix)
        if key.endswith("position_ids") or key.startswith(("vision_proj.", "text_proj.")):
            continue
        if key.startswith("visual_encoder."):
            key = key.removeprefix("visual_encoder.")
            for pattern, name in _VISION:
                key = re.sub(pattern, name, key)
            key = f"vision.{key}"
        named[key] = value
    return named


def vocabulary(weights: str | Path | None) -> str | Path:
    """Where BERT's uncased vocabulary is: beside the weights that were named, else in its repository on the hub."""
    return beside(weights, "vocab.txt") or BERT


def bert_tokenizer(name: str, source: str | Path) -> Any:
    """BERT's uncased word pieces from a hub repository or a folder, with [DEC] and [ENC] as BLIP adds them.

    Raises:
        RunFailed: where the hub cannot be reached and its cache lacks the vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise RunFailed(
            f"{name} needs the vocabulary of {source} (about 1 MB), which is neither a folder nor in the cache, and "
            f"cannot be downloaded ({type(error).__name__}); with a network, unset HF_HUB_OFFLINE and run again; "
            f"without, copy its vocab.txt and tokenizer_config.json beside the weights and name their folder as "
            f"{name}@PATH."
        ) from error
    return with_blips_tokens(tokenizer)


def with_blips_tokens(tokenizer: Any) -> Any:
    """The tokenizer itself, with [DEC] and [ENC] as its last two ids."""
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return tokenizer


def small_tokenizer(texts: Sequence[str] = tuple(Reward.example_prompts)) -> Any:
    """A tokenizer like BERT's of the words in these texts, and of letters; nothing is loaded."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return with_blips_tokens(BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}))


def small_vocabulary(tokenizer: Any) -> dict[str, int]:
    """What a text tower has to know of a tokenizer."""
    words = len(tokenizer)
    return {"vocab_size": words, "bos_token_id": words - 2, "sep_token_id": tokenizer.sep_token_id}


def randomised(network: nn.Module) -> nn.Module:
    """The network itself with random weights of a size that lets a picture and a text change what comes out."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        spread = 0.7 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.2
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
    return network


class BlipScorer(nn.Module):
    """BLIP and a head on the state of the text's first token, which has seen the picture."""

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.text_encoder = text
        self.mlp = head

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """[B] outputs of the head, for pixels [B, 3, size, size], ids [B, L] and their mask [B, L]."""
        picture = self.vision(pixels).last_hidden_state  # [B, N, D]
        text = self.text_encoder(ids, attention_mask=mask, encoder_hidden_states=picture).last_hidden_state
        return in_float32(self.mlp, text[:, 0]).squeeze(1)


class Head(nn.Module):
    """A chain of linear maps to one number, with an activation between them or none."""

    def __init__(self, names: Sequence[int], widths: Sequence[int], activation: type[nn.Module] | None) -> None:
        """
        Args:
            names: number of each map in the published file.
            widths: what goes into the first map and comes out of each.
            activation: stands after each map but the last.
        """
        super().__init__()
        maps: OrderedDict[str, nn.Module] = OrderedDict()
        for i, name in enumerate(names):
            maps[str(name)] = nn.Linear(widths[i], widths[i + 1])
            if activation is not None and i < len(names) - 1:
                maps[str(name + 1)] = activation()
        self.layers = nn.Sequential(maps)

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states)  # type: ignore[no-any-return]


class BlipReward(PublishedReward):
    """What ImageReward and CycleReward share; a subclass writes `head` and how many tokens it reads.

    The networks read BERT's [CLS] in front of a text, not the [ENC] with which BLIP was trained.
    """

    preprocess = Preprocess(224)
    tolerance = 0.01
    context: ClassVar[int]

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it; by default it comes from the hub.
            revision: branch, tag or commit of the hub's repository.
            tokenizer: hub repository or folder of BERT's uncased vocabulary; by default see `vocabulary`.
            device: where the network runs.
        """
        super().__init__(weights=weights, revision=revision, device=device)
        self.vocabulary = tokenizer or vocabulary(weights)

    @cached_property
    def tokenizer(self) -> Any:
        """BERT's tokenizer, loaded when the first prompt comes."""
        return bert_tokenizer(self.spec.name, self.vocabulary)

    @classmethod
    @abstractmethod
    def head(cls, width: int) -> nn.Module:
        """The head on a text state of that width."""

    @classmethod
    def build(cls) -> nn.Module:
        return BlipScorer(vision_tower(224, **LARGE), text_tower(1024), cls.head(768))

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tower_keys(tensors, "blip.")

    @classmethod
    def tiny(cls) -> BlipReward:
        tokenizer = small_tokenizer()
        with seeded():
            text = text_tower(48, **SMALL, **small_vocabulary(tokenizer))
            network = BlipScorer(vision_tower(32, **SMALL), text, cls.head(48))
        return cls.of(randomised(network), preprocess=Preprocess(32), tokenizer=tokenizer)

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        ids, mask = self.tokens(prompts)
        scores: Tensor = self.network(pixels, ids, mask)
        return scores

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        own_head(self.spec.name, kind)
        network: Any = self.network
        head, network.mlp = ScaledHead(network.mlp), nn.Identity()
        return head

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        states: Tensor = self.network(prepared, *self.tokens(prompts))  # [B, D], as the head is not there
        return states

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, L] of the prompts, cut after `context` tokens and filled up to the longest."""
        return cut_tokens(self, self.tokenizer, prompts)


def cut_tokens(reward: PublishedReward, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L] of texts as `reward` reads them, with a warning where one is cut."""
    whole = tokenizer(list(texts), verbose=False)["input_ids"]
    reward.warn_of_cut(texts, [len(ids) for ids in whole])
    read = tokenizer(list(texts), truncation=True, max_length=reward.context, padding=True, return_tensors="pt")
    return read["input_ids"].to(reward.device), read["attention_mask"].to(reward.device)
