"""LlamaGen (Sun et al., 2024): a Llama that writes the codes of a picture, row by row; its conditions are beside it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.llamagen_gpt import Gpt, GptConfig
from rwk.adapters.llamagen_vq import Vq, VqConfig
from rwk.adapters.published import Origin, read
from rwk.adapters.saved_networks import Tensors, filled, find_both, read_networks, write_networks
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import Sampling


class LlamaGen(CausalGenerator):
    """The authors' transformer and tokenizer, under the keys of their checkpoints.

    Guidance, temperature, top-k and top-p act in the order of their sampler, here in float32; theirs leaves guidance
    out at weights of at most 1. Their dropout, which only training had, is left out.
    """

    counts_from_image = True
    sizes: ClassVar[GptConfig]
    vq_sizes: ClassVar[VqConfig] = VqConfig()
    origin: ClassVar[Origin]
    vq_origin: ClassVar[Origin]

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """
        Args:
            weights: the published file of the transformer, or a folder that holds it; other files that lie beside it
                are taken too. By default all come from the hub.
            revision: branch, tag or commit of the repository on the hub that holds transformer and tokenizer.
            device: where the networks lie.
            dtype: of the transformer: "float32", "bfloat16" or "float16". The authors sampled in bfloat16.

        Raises:
            ValueError: for files that are not these checkpoints.
            RunFailed: where a file cannot be had.
        """
        paths = find_both(self.spec.name, self.origin, self.vq_origin, weights, revision)
        self._take(self.sizes, self.vq_sizes, [published(path) for path in paths], device, dtype)

    def _take(self, gpt: GptConfig, vq: VqConfig, tensors: list[Tensors], device: str, dtype: str) -> Self:
        name = self.spec.name
        self.module = filled(name, lambda: Gpt(gpt), tensors[0], device, dtype)
        self.vq = filled(name, lambda: Vq(vq), tensors[1], device, "float32").requires_grad_(False).eval()
        side = gpt.grid * vq.patch
        self.spec = replace(self.spec, tokens=gpt.grid**2, codes=gpt.codes, image_size=side)
        return self

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        """Every published checkpoint that it is made of."""
        return (cls.origin, cls.vq_origin)

    @classmethod
    def tiny(cls) -> Self:
        caption = 16 if cls.sizes.caption_width else 0
        gpt = replace(cls.sizes, layers=2, heads=2, width=16, grid=3, caption_width=caption, codes=32)
        vq = VqConfig(codes=32, width=32, latent=8, multiples=(1, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = Gpt(gpt), Vq(vq)
            for weight in networks[0].parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=1.5 * weight.shape[1] ** -0.5)
        return cls.__new__(cls)._take(gpt, vq, [network.state_dict() for network in networks], "cpu", "float32")

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        config, tensors = read_networks(folder, "gpt", "vq")
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, sampling=Sampling(**config["spec"]["sampling"]))
        return self._take(GptConfig(**config["gpt"]), VqConfig(**config["vq"]), tensors, device, config["dtype"])

    def _save(self, folder: Path) -> None:
        gpt, vq = asdict(self.causal_lm.config), asdict(self.vq.config)
        write_networks(folder, self.spec, gpt=(self.module, gpt), vq=(self.vq, vq))

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.causal_lm.tok_embeddings(codes)  # type: ignore[no-any-return]

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.causal_lm.output(hidden)  # type: ignore[no-any-return]

    def backbone(
        self, embeds: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        return self.causal_lm(embeds, positions, mask, cache)  # type: ignore[no-any-return]

    def code_embeddings(self) -> Tensor:
        return self.vq.codebook  # type: ignore[no-any-return]

    def _levels(self, tokens: Tensor) -> Tensor:
        return (255 * self.vq.decode(tokens) + 0.5).byte()  # type: ignore[no-any-return]

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; the codes to come are those of a grey picture."""
        side = self.spec.image_size
        with torch.no_grad():
            blank = self.vq.encode(torch.full([1, 3, side, side], 0.5, device=self.device))  # [1, L]
        ahead = blank.expand(len(tokens), -1)[:, tokens.shape[1] :]
        return self.decode(torch.cat([tokens.to(self.device), ahead], 1))


def published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file that the networks take."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # the authors' trainer writes its options beside them
        tensors = read(path)
    # Which codes came last in training, and a table that the transformer computes.
    return {key: tensor for key, tensor in tensors.items() if key not in ("quantize.codebook_used", "freqs_cis")}


def spec_of(name: str, grid: int, sampling: Sampling) -> GeneratorSpec:
    """The spec of a published generator, which draws `grid` by `grid` codes of 16 by 16 pixels."""
    return GeneratorSpec(f"llamagen.{name}", grid * grid, 16384, 16 * grid, "MIT", "arXiv:2406.06525", sampling)
