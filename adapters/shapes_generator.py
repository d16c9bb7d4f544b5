"""The generator of the built-in world: a Llama that reads a prompt and writes the 64 codes of a picture."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwk.adapters.shapes_prompts import WORDS, words_of
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_vq import CODES, GRID, ShapesVQ
from rwk.adapters.shapes_world import SIZE
from rwk.policy_opt.batched import BatchedGenerator
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import reading

WEIGHTS = Path(__file__).parent / "weights"
PAD, NULL, BEGIN = CODES, CODES + 1, CODES + 2
"""Text ids after the codes: padding, the empty prompt, begin of image; the words follow."""
WORD_IDS = {word: BEGIN + 1 + index for index, word in enumerate(WORDS)}
LLAMA = {
    "vocab_size": BEGIN + 1 + len(WORDS),
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": NULL,
    "eos_token_id": None,
    "attn_implementation": "eager",  # on a CPU its backward pass took half the time of the fused one
}
SPEC = GeneratorSpec(
    name="shapes.llama",
    tokens=GRID * GRID,
    codes=CODES,
    image_size=SIZE,
    licence="Apache-2.0",
    source="rwk.adapters.shapes_train",
    sampling=Sampling(temperature=0.8),
)


class ShapesGenerator(BatchedGenerator):
    """What the generators of the built-in world share: how they are built, in full size and small, and show pictures.

    A subclass sets `shipped`, `sizes` and `spec`, and writes `_take`, `_build` and `_save`.
    """

    shipped: ClassVar[Path]
    sizes: ClassVar[dict[str, Any]] = LLAMA
    """Of the network in full size, as transformers' LlamaConfig takes them."""
    decoded_at_once = 64
    vq: Any

    def __init__(self, *, device: str = "cpu", weights: str | Path | None = None) -> None:
        """
        Args:
            device: where the networks lie.
            weights: a folder with the files that `save` writes; the shipped one by default.

        Raises:
            ValueError: where the folder does not hold this generator.
        """
        folder = Path(weights) if weights else self.shipped
        with reading(folder, self.spec.name):
            self._take(folder)
        self._place(device)

    @abstractmethod
    def _take(self, folder: Path) -> None:
        """Builds the networks from a folder's files."""

    @abstractmethod
    def _build(self, sizes: dict[str, Any], vq_width: int, sampling: Sampling) -> None:
        """Builds networks of random weights."""

    @classmethod
    def blank(cls) -> Self:
        """The generator in its full size with untrained weights."""
        return cls._untrained(cls.sizes, 128)

    @classmethod
    def tiny(cls) -> Self:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return cls._untrained(cls.sizes | small | {"num_key_value_heads": 2}, 32)

    @classmethod
    def _untrained(cls, sizes: dict[str, Any], vq_width: int) -> Self:
        self = cls.__new__(cls)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._build(sizes, vq_width, cls.spec.sampling)
        self._place("cpu")
        return self

    def _place(self, device: str) -> None:
        self.module.to(device)
        self.vq.to(device).requires_grad_(False).eval()

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        return cls(device=device, weights=folder)

    def pixels(self, tokens: Tensor) -> Tensor:
        """Pixels [B, 3, 48, 48] in 0..1 of tokens [B, L]."""
        with torch.no_grad():
            parts = tokens.to(self.device).split(self.decoded_at_once)
            return torch.cat([self.vq.decode(part) for part in parts])

    def soft_pixels(self, embeddings: Tensor) -> Tensor:
        return self.vq.decode_soft(embeddings)  # type: ignore[no-any-return]

    def _levels(self, tokens: Tensor) -> Tensor:
        return (255 * self.pixels(tokens)).byte()


class ShapesLlama(ShapesGenerator, CausalGenerator):
    """`transformers.LlamaForCausalLM` over 512 image codes and the words of the built-in world."""

    shipped = WEIGHTS / "shapes_llama"
    spec = SPEC

    def _take(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._build(config["llama"], config["vq_width"], Sampling(**config["sampling"]))
        state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        _load(self.module, state, "lm.")
        _load(self.vq, state, "vq.")

    def _build(self, sizes: dict[str, Any], vq_width: int, sampling: Sampling) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        self.module = LlamaForCausalLM(LlamaConfig(**sizes))
        self.vq = ShapesVQ(vq_width)
        self.spec = replace(type(self).spec, sampling=sampling)
        self._config = {
            "rwk_generator": self.spec.name,
            "llama": sizes,
            "vq_width": vq_width,
            "sampling": asdict(sampling),
        }

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lm = {"lm." + name: tensor for name, tensor in self.module.state_dict().items()}
        vq = {"vq." + name: tensor for name, tensor in self.vq.state_dict().items()}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in (lm | vq).items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self._config, indent=2) + "\n")

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt's words and of the begin of an image; raises ValueError for a word the world lacks."""
        return [*word_ids(self.spec.name, prompt), BEGIN]

    def null_ids(self, prompt: str) -> list[int]:
        return [NULL, BEGIN]

    def code_embeddings(self) -> Tensor:
        return self.vq.code_embeddings()  # type: ignore[no-any-return]

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; the codes to come are those of the bare background."""
        with torch.no_grad():
            blank = self.vq.encode(render([()]).to(self.device))  # [1, 64]
        ahead = blank.expand(len(tokens), -1)[:, tokens.shape[1] :]
        return self.decode(torch.cat([tokens.to(self.device), ahead], 1))


def word_ids(name: str, prompt: str) -> list[int]:
    """Ids of a prompt's words; raises ValueError, in the name of a generator, for a word the world lacks."""
    words = words_of(prompt)
    unknown = [word for word in words if word not in WORD_IDS]
    if unknown or not words:
        raise ValueError(
            f"{name} knows only the {len(WORDS)} words of its world, got {(unknown or [prompt])[0]!r}; "
            f"write prompts such as 'a photo of a red circle', or take them from a family such as shapes.long."
        )
    return [WORD_IDS[word] for word in words]


def _load(module: torch.nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict({name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)})


def text_ids(prompts: Sequence[str], dropped: Sequence[bool]) -> Tensor:
    """[B, P] left-padded ids of prompts for training; a dropped prompt is the empty one."""
    rows = [
        [NULL, BEGIN] if drop else [*(WORD_IDS[word] for word in words_of(prompt)), BEGIN]
        for prompt, drop in zip(prompts, dropped, strict=True)
    ]
    width = max(map(len, rows))
    return torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
