"""A generator of the built-in world that draws map after map of codes, from one code to the whole picture.

A Llama reads the prompt and then the maps, as VAR (Tian et al., 2024, arXiv:2404.02905) has it: the codes of a map are
drawn together, given what the maps before look like at its side, and see each other and all that is before. A code is
counted as if it stood where the middle of its patch lies in the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.saved_networks import read_networks, write_networks
from rwk.adapters.shapes_generator import LLAMA, NULL, SPEC, WEIGHTS, ShapesGenerator, word_ids
from rwk.adapters.shapes_scales_vq import BITS, CODES, SIDES, STEPS, ScalesVQ, code_embeddings
from rwk.adapters.shapes_vq import CODES as BEFORE
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.stepwise import Reader, StepwiseGenerator

WORDS = LLAMA["vocab_size"] - BEFORE
"""Text ids: those of `shapes.llama` less the codes before them."""
SIZES = LLAMA | {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": None}


class ScalesLlama(nn.Module):
    """`transformers.LlamaModel` with what embeds a prompt and maps of codes, and the head of the codes."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        from transformers import LlamaConfig, LlamaModel

        super().__init__()
        self.config = LlamaConfig(**sizes)
        self.model = LlamaModel(self.config)
        width = self.config.hidden_size
        self.outlook = nn.Linear(BITS, width, bias=False)
        self.places = nn.Embedding(sum(STEPS), width)
        self.head = nn.Linear(width, CODES, bias=False)


class ShapesScales(ShapesGenerator, StepwiseGenerator):
    """`ScalesLlama` over maps of 1, 2, 4 and 8 codes a side, each of 512 kinds."""

    spec = replace(
        SPEC,
        name="shapes.scales",
        tokens=sum(STEPS),
        codes=CODES,
        source="rwk.adapters.shapes_scales_train",
        sampling=Sampling(guidance=2.0, temperature=0.8),
        steps=STEPS,
    )
    shipped = WEIGHTS / "shapes_scales"
    sizes = SIZES
    module: ScalesLlama

    def _take(self, folder: Path) -> None:
        config, (lm, vq) = read_networks(folder, "lm", "vq")
        self._build(config["lm"], config["vq"]["width"], Sampling(**config["spec"]["sampling"]))
        self.module.load_state_dict(lm)
        self.vq.load_state_dict(vq)

    def _build(self, sizes: dict[str, Any], vq_width: int, sampling: Sampling) -> None:
        self.module, self.vq = ScalesLlama(sizes), ScalesVQ(vq_width)
        self.spec = replace(type(self).spec, sampling=sampling)
        self._sizes = {"lm": sizes, "vq": {"width": vq_width}}

    def _save(self, folder: Path) -> None:
        write_networks(folder, self.spec, lm=(self.module, self._sizes["lm"]), vq=(self.vq, self._sizes["vq"]))

    def prompt_ids(self, prompt: str | None) -> list[int]:
        """Ids of the prompt's words, or of none; raises ValueError for a word the world lacks."""
        ids = [NULL] if prompt is None else word_ids(self.spec.name, prompt)
        return [number - BEFORE for number in ids]

    def reader(self, rows: Sequence[str | None]) -> Reader:
        from transformers import DynamicCache

        text, cache, done = self._text(rows), DynamicCache(), 0

        def read(codes: Tensor) -> Tensor:
            nonlocal done
            last = next(scale for scale, (start, _) in enumerate(self.bounds) if start == codes.shape[1])
            states = self._read(text, codes, range(done, last + 1), cache)
            done = last + 1
            return states[:, -STEPS[last] :]

        return read

    def states(self, rows: Sequence[str | None], codes: Tensor) -> Tensor:
        return self._read(self._text(rows), codes, range(len(STEPS)), None)

    def _text(self, rows: Sequence[str | None]) -> Tensor:
        """[B, P] ids, padded on the left by -1."""
        ids = [self.prompt_ids(row) for row in rows]
        width = max(map(len, ids))
        return torch.tensor([[-1] * (width - len(row)) + row for row in ids], device=self.device)

    def _read(self, text: Tensor, codes: Tensor, scales: range, cache: Any) -> Tensor:
        """[B, n, D] states of the codes of these maps, given those [B, k] of all maps before the last of them.

        Args:
            text: [B, P] ids, read along with the first map.
            cache: of the text and the maps before these; to be added to.
        """
        net, width = self.module, text.shape[1]
        seen = [self.vq.outlook(codes[:, : self.bounds[scale][0]], scale) for scale in scales]
        start, stop = self.bounds[scales[0]][0], self.bounds[scales[-1]][1]
        places = net.places.weight[start:stop]
        embeds = net.outlook(torch.cat(seen, 1).to(places.dtype)) + places
        if start == 0:
            embeds = torch.cat([net.model.embed_tokens(text.clamp(min=0)), embeds], 1)
        mask, positions = self._layout(text, stop)
        new = slice(width + stop - embeds.shape[1], None)
        hidden: Tensor = net.model(
            inputs_embeds=embeds,
            position_ids=positions[:, new],
            attention_mask=mask[:, :, new],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden[:, start - stop :]

    def _layout(self, text: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Of the text and the first `stop` codes: [B, 1, S, S] to add to the scores, and [1, S] where they stand.

        Padding moves a whole row, and attention asks only how far apart two places are.
        """
        width, device = text.shape[1], text.device
        place = torch.arange(width, device=device)
        order = torch.cat([place, width + scale_of(device)[:stop]])  # a map sees all of itself
        pads = nn.functional.pad(text < 0, (0, stop))  # [B, S]
        blind = (order[None] > order[:, None]) | pads[:, None]  # [B, S, S]
        dtype = self.module.head.weight.dtype
        mask = torch.zeros(blind.shape, dtype=dtype, device=device).masked_fill(blind, torch.finfo(dtype).min)
        return mask[:, None], torch.cat([place, width + middles(device)[:stop]])[None]

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.module.head(hidden)  # type: ignore[no-any-return]

    def code_embeddings(self) -> Tensor:
        return code_embeddings(self.device)

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; without the details of the maps that are not whole."""
        return self.decode(tokens)


def scale_of(device: torch.device) -> Tensor:
    """[L] long: the map of every code."""
    return torch.arange(len(STEPS), device=device).repeat_interleave(torch.tensor(STEPS, device=device))


def middles(device: torch.device) -> Tensor:
    """[L] long: which code of the finest map, row by row, lies in the middle of each code's patch."""
    side = SIDES[-1]
    rows = [torch.arange(each, device=device) * (side // each) + side // each // 2 for each in SIDES]
    return torch.cat([(row[:, None] * side + row).flatten() for row in rows])
