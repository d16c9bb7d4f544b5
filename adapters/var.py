"""VAR (Tian et al., 2024): a picture of a class of ImageNet, drawn map by map from one code to the finest map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.llamagen_c2i import class_of
from rwk.adapters.published import Origin, read
from rwk.adapters.saved_networks import Tensors, filled, find_both, read_networks, write_networks
from rwk.adapters.var_transformer import Cache, VarConfig, VarTransformer
from rwk.adapters.var_vq import VarVq, VarVqConfig
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.stepwise import Reader, StepwiseGenerator

HUB = "FoundationVision/var"
RECIPE = Sampling(guidance=5.0, top_k=900, top_p=0.95)
"""That of the authors' demo_sample.ipynb; for FID they draw with guidance 2.5 and top_p 0.96."""
SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
COMPUTED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")
"""Ends of keys of what is no weight: which code is of which map, what it sees, zeros, and which codes training used."""


def spec_of(name: str, sides: tuple[int, ...]) -> GeneratorSpec:
    """The spec of a published generator, whose codes stand for 16 by 16 pixels."""
    steps = tuple(side**2 for side in sides)
    return GeneratorSpec(name, sum(steps), 4096, 16 * sides[-1], "MIT", "arXiv:2404.02905", RECIPE, steps)


class Var16(StepwiseGenerator):
    """VAR-d16 at 256 pixels: 310 million weights, the authors' transformer and tokenizer.

    A prompt names a class of ImageNet by its number from 0, "207" or "class 207", or by one of its names in timm, such
    as "golden retriever". A draw is a map of codes. Guidance w rises from map to map, as the authors have it: the i-th
    of n is drawn with 1 + (w - 1) i / (n - 1), i from 0, so that their cfg is w - 1. Their `more_smooth`, which mixes
    vectors in place of drawing codes, is left out: no probability belongs to it.
    """

    spec = spec_of("var.d16", SIDES)
    sizes: ClassVar[VarConfig] = VarConfig(16, 1024, 16, SIDES)
    vq_sizes: ClassVar[VarVqConfig] = VarVqConfig(SIDES)
    origin: ClassVar[Origin] = Origin(HUB, "var_d16.pth", "MIT", 1243)
    vq_origin: ClassVar[Origin] = Origin(HUB, "vae_ch160v4096z32.pth", "MIT", 436)
    example_prompts = ("7", "class 360", "a photo of a golden retriever")
    module: Any

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
            weights: the published file of the transformer, or a folder that holds it; the tokenizer's is taken too if
                it lies beside it. By default both come from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the networks lie.
            dtype: of the transformer: "float32", "bfloat16" or "float16". The authors sampled in float16 autocast.

        Raises:
            ValueError: for files that are not these checkpoints.
            RunFailed: where a file cannot be had.
        """
        paths = find_both(self.spec.name, self.origin, self.vq_origin, weights, revision)
        self._take(self.sizes, self.vq_sizes, [published(path) for path in paths], device, dtype)

    def _take(self, gpt: VarConfig, vq: VarVqConfig, tensors: list[Tensors], device: str, dtype: str) -> Self:
        name = self.spec.name
        self.module = filled(name, lambda: VarTransformer(gpt), tensors[0], device, dtype)
        self.vq = filled(name, lambda: VarVq(vq), tensors[1], device, "float32").requires_grad_(False).eval()
        steps = gpt.steps
        self.spec = replace(self.spec, tokens=sum(steps), codes=gpt.codes, image_size=vq.image_size, steps=steps)
        return self

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        """Every published checkpoint that it is made of."""
        return (cls.origin, cls.vq_origin)

    @classmethod
    def tiny(cls) -> Self:
        sides = (1, 2, 3)
        gpt = VarConfig(2, 32, 2, sides, shared=cls.sizes.shared, codes=32, latent=8)
        vq = VarVqConfig(sides, codes=32, latent=8, width=32, multiples=(1, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = VarTransformer(gpt), VarVq(vq)
            for weight in networks[0].parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        return cls.__new__(cls)._take(gpt, vq, [network.state_dict() for network in networks], "cpu", "float32")

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        config, tensors = read_networks(folder, "gpt", "vq")
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, sampling=Sampling(**config["spec"]["sampling"]))
        return self._take(VarConfig(**config["gpt"]), VarVqConfig(**config["vq"]), tensors, device, config["dtype"])

    def _save(self, folder: Path) -> None:
        gpt, vq = asdict(self.module.config), asdict(self.vq.config)
        write_networks(folder, self.spec, gpt=(self.module, gpt), vq=(self.vq, vq))

    def reader(self, rows: Sequence[str | None]) -> Reader:
        classes = self._classes(rows)
        cache: Cache = [[] for _ in range(self.module.config.num_hidden_layers)]
        scale = 0

        def read(codes: Tensor) -> Tensor:
            nonlocal scale
            for start, _ in self.bounds[scale:]:
                states: Tensor = self.module(self._embeds(classes, codes[:, :start], scale), classes, start, cache)
                scale += 1
                if start == codes.shape[1]:
                    break
            return states

        return read

    def states(self, rows: Sequence[str | None], codes: Tensor) -> Tensor:
        classes = self._classes(rows)
        maps = [self._embeds(classes, codes[:, :start], scale) for scale, (start, _) in enumerate(self.bounds)]
        made: Tensor = self.module(torch.cat(maps, 1), classes)
        return made

    def guidance_at(self, step: int, guidance: float) -> float:
        return 1 + (guidance - 1) * step / (len(self.spec.steps) - 1)

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.module.head(hidden)  # type: ignore[no-any-return]

    def _classes(self, rows: Sequence[str | None]) -> Tensor:
        none = self.module.config.classes
        found = [none if row is None else class_of(self.spec.name, row) for row in rows]
        return torch.tensor(found, device=self.device)

    def _embeds(self, classes: Tensor, codes: Tensor, scale: int) -> Tensor:
        """[B, n, D] what the codes [B, k] of the scales before tell of this one; of the first, the class."""
        if scale == 0:
            return self.module.class_emb(classes)[:, None] + self.module.pos_start  # type: ignore[no-any-return]
        seen = self.vq.outlook(codes, scale).to(self.module.pos_start.dtype)
        return self.module.word_embed(seen)  # type: ignore[no-any-return]

    def code_embeddings(self) -> Tensor:
        return self.vq.codebook  # type: ignore[no-any-return]

    def soft_pixels(self, embeddings: Tensor) -> Tensor:
        return self.vq.decode(embeddings)  # type: ignore[no-any-return]

    def _levels(self, tokens: Tensor) -> Tensor:
        """See `Generator._levels`; they are cut off, not rounded, as the authors do."""
        return (255 * self.vq.decode(self.vq.codebook[tokens])).byte()  # type: ignore[no-any-return]

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """See `Generator.decode_partial`; without the details of the maps that are not whole."""
        return self.decode(tokens)


class Var20(Var16):
    """VAR-d20 at 256 pixels: 600 million weights; otherwise as `var.d16`."""

    spec = spec_of("var.d20", SIDES)
    sizes = VarConfig(20, 1280, 20, SIDES)
    origin = Origin(HUB, "var_d20.pth", "MIT", 2406)


class Var24(Var16):
    """VAR-d24 at 256 pixels: 1.0 billion weights; otherwise as `var.d16`."""

    spec = spec_of("var.d24", SIDES)
    sizes = VarConfig(24, 1536, 24, SIDES)
    origin = Origin(HUB, "var_d24.pth", "MIT", 4136)


class Var30(Var16):
    """VAR-d30 at 256 pixels: 2.0 billion weights; otherwise as `var.d16`."""

    spec = spec_of("var.d30", SIDES)
    sizes = VarConfig(30, 1920, 30, SIDES)
    origin = Origin(HUB, "var_d30.pth", "MIT", 8042)


class Var36(Var16):
    """VAR-d36 at 512 pixels: 2.3 billion weights, one modulation for all layers; otherwise as `var.d16`."""

    _sides = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    spec = spec_of("var.d36", _sides)
    sizes = VarConfig(36, 2304, 36, _sides, shared=True)
    vq_sizes = VarVqConfig(_sides)
    origin = Origin(HUB, "var_d36.pth", "MIT", 9436)


def published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file that the networks take: of the tokenizer, those that decode."""
    left_out = ("encoder.", "quant_conv.")
    return {k: v for k, v in read(path).items() if not k.endswith(COMPUTED) and not k.startswith(left_out)}
