"""The condition of LlamaGen's text-to-image models: what a frozen T5 makes of a cleaned prompt."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from rwk.adapters.clean_caption import clean_caption
from rwk.adapters.pretrained import load_tokenizer, load_whole
from rwk.adapters.published import Origin, beside, hub_is_near
from rwk.adapters.vqascore import tiny_tokenizer
from rwk.rewards.errors import RunFailed

ORIGIN = Origin("google/flan-t5-xl", "model.safetensors.index.json", "Apache-2.0", 11_400)


class T5Features:
    """The encoder of a T5 with its tokenizer.

    It reads every prompt alone: in half precision, padding to the length of others would change the features, and so
    the probabilities of a picture by its neighbours. Those of the last 256 prompts are kept.
    """

    def __init__(self, encoder: Any, tokenizer: Any, device: str = "cpu") -> None:
        self.encoder = encoder.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.features = functools.lru_cache(256)(self._features)

    def __deepcopy__(self, memo: object) -> Self:
        return self  # frozen, and too large to hold twice

    @classmethod
    def load(cls, name: str, weights: str | Path | None, device: str) -> Self:
        """The published encoder in bfloat16, from the folder of `weights` where its config.json is, else from the hub.

        Args:
            name: the generator that asks.
            weights: a folder, or a file in it, or None.

        Raises:
            ValueError: where the checkpoint does not fill the encoder.
            RunFailed: where it cannot be had.
        """
        from transformers import T5EncoderModel

        where = beside(weights, "config.json") or ORIGIN.hub
        tokenizer = load_tokenizer(name, ORIGIN.hub, weights)
        try:
            near = hub_is_near()
            encoder = load_whole(
                name, T5EncoderModel, str(where), faults=["missing"], dtype=torch.bfloat16, local_files_only=not near
            )
        except OSError as error:
            raise RunFailed(
                f"{name} needs the text encoder {ORIGIN.hub} (about {ORIGIN.megabytes} MB), which is not in the cache "
                f"and cannot be downloaded ({type(error).__name__}); with a network, unset HF_HUB_OFFLINE and run "
                f"again; without, copy its files beside those of the generator and name the folder as {name}@PATH."
            ) from error
        return cls(encoder, tokenizer, device)

    @classmethod
    def tiny(cls) -> Self:
        """A small random encoder that knows letters."""
        from transformers import T5Config, T5EncoderModel

        tokenizer, config = tiny_tokenizer(), T5Config
        sizes: Any = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = T5EncoderModel(config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes))
            for weight in made.parameters():
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        return cls(made, tokenizer)

    @classmethod
    def from_folder(cls, folder: Path, device: str) -> Self:
        """What `save` wrote."""
        from transformers import AutoTokenizer, T5EncoderModel

        encoder = load_whole(str(folder), T5EncoderModel, str(folder), dtype="auto")
        return cls(encoder, AutoTokenizer.from_pretrained(str(folder)), device)

    def save(self, folder: Path) -> None:
        """Writes the encoder and the tokenizer as transformers keeps them."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def ids(self, prompt: str, longest: int) -> list[int]:
        """Ids of the cleaned prompt, `</s>` the last, cut to `longest`."""
        found: list[int] = self.tokenizer(clean_caption(prompt), max_length=longest, truncation=True).input_ids
        return found

    def _features(self, ids: tuple[int, ...]) -> Tensor:
        """[n, D] of one prompt's ids."""
        with torch.no_grad():
            read = torch.tensor([ids], device=self.encoder.device)
            features: Tensor = self.encoder(input_ids=read).last_hidden_state[0]
        return features
