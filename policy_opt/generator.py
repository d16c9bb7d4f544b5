"""What a generator is: prompts in, image tokens with the log-probabilities of what really sampled, images out."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from rwk.policy_opt.low_rank import load_on, written_beside
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import reading
from rwk.rewards.registry import Registry


@dataclass(frozen=True)
class GeneratorSpec:
    """What can be known of a generator without running it."""

    name: str
    tokens: int
    """L, tokens per image: of the image, and before them those of a text that the generator writes first, if any."""
    codes: int
    """K, size of the codebook; tokens lie in 0..K-1."""
    image_size: int
    """Height and width of an image in pixels."""
    licence: str
    source: str
    sampling: Sampling = Sampling()
    """The recipe that is used where none is named."""
    steps: tuple[int, ...] = ()
    """Tokens of each draw, in order, where one draws several: they are independent given the draws before. L in all."""
    text: int = 0
    """T, how many of the L tokens, the first ones, are of a text that is written before the image."""


@dataclass(frozen=True)
class Rollout:
    """What a generator drew, with all that is needed to compute its log-probabilities again."""

    prompts: list[str]
    """[B] the prompt of every row."""
    group: Tensor
    """[B] long: rows of one prompt have the same number."""
    tokens: Tensor
    """[B, L] long, in the order in which they were drawn."""
    logprobs: Tensor
    """[B, L] float32 of each token under the distribution that sampled it, guidance and truncation included."""
    sampling: Sampling
    recipes: tuple[Sampling, ...] = ()
    """[B] the distribution of every row, where rows differ (`sub_policies`); a family is asked for one at a time."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | Tensor) -> Rollout:
        index = torch.arange(len(self))[rows]
        return replace(
            self,
            prompts=[self.prompts[i] for i in index.tolist()],
            group=self.group[index],
            tokens=self.tokens[index],
            logprobs=self.logprobs[index],
            recipes=tuple(self.recipes[i] for i in index.tolist()) if self.recipes else (),
        )

    def cpu(self) -> Rollout:
        """The same in main memory."""
        return replace(self, group=self.group.cpu(), tokens=self.tokens.cpu(), logprobs=self.logprobs.cpu())

    @staticmethod
    def joined(parts: Sequence[Rollout]) -> Rollout:
        """Rollouts of one recipe in one, their groups counted on."""
        before = [0, *itertools.accumulate(int(part.group.max()) + 1 for part in parts)]
        return replace(
            parts[0],
            prompts=[prompt for part in parts for prompt in part.prompts],
            group=torch.cat([part.group + first for part, first in zip(parts, before, strict=False)]),
            tokens=torch.cat([part.tokens for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            recipes=tuple(recipe for part in parts for recipe in part.recipes),
        )


class TokenStatistics(NamedTuple):
    """What a policy says of the tokens of a rollout, under the distribution that sampled them."""

    logprobs: Tensor
    """[B, L] float32, with gradient."""
    entropy: Tensor
    """[B, L] float32, in nats."""


def as_images(levels: Tensor) -> list[Image.Image]:
    """RGB images of 8-bit levels [B, 3, H, W]."""
    return [to_pil_image(picture) for picture in levels.cpu()]


class Generator(ABC):
    """A sampler of image tokens whose probabilities can be computed and trained."""

    spec: GeneratorSpec
    module: nn.Module
    """Everything that can be trained; its parameters move when a reward is optimised."""
    decoded_at_once: ClassVar[int] = 8
    """Images whose pixels are computed at once, which bounds memory; no result depends on it."""
    example_prompts: Sequence[str] = (
        "a photo of a red circle",
        "a small blue square above a large green triangle",
        "a black cross",
    )
    """Prompts that the generator can read, of unequal length; `policy_opt.contract` samples them."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Generator:
        """The same generator with a small random network, built without a download."""

    @classmethod
    @abstractmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        """The generator that `_save` wrote."""

    @abstractmethod
    def _save(self, folder: Path) -> None:
        """Makes the folder; writes safetensors and config.json, which tells the registered name as `rwk_generator`."""

    @final
    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        """The generator that `save` wrote; raises ValueError where the folder, or what is kept in it, is of another."""
        with reading(folder, "generator"):
            self = cls._from_folder(folder, device=device)
        load_on(self.module, folder, self.spec.name)
        return self

    @final
    def save(self, folder: Path) -> None:
        """Writes what `load` builds the same generator from: its files, and what is kept beside them (`low_rank`)."""
        with written_beside(self.module, folder):
            self._save(folder)

    def check_prompt(self, prompt: str) -> None:  # noqa: B027 (a family may read anything)
        """Raises ValueError for a prompt that `sample` would refuse, so that a run can ask before it draws for any."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        """Draws `per_prompt` images for every prompt, rows of one prompt adjacent.

        The draw of a row depends on the seed, its prompt and its place, never on torch's global generator, which is
        left as it was.
        """

    @abstractmethod
    def statistics(self, rollout: Rollout) -> TokenStatistics:
        """Log-probabilities of the rollout's tokens under `rollout.sampling`, and the entropy at each of them.

        The log-probabilities equal `rollout.logprobs` while the weights are those that sampled, except in mode
        `cond_only`. In mode `matched_detach_uncond` their gradient leaves out what the unconditional model says.
        """

    def logprobs(self, rollout: Rollout) -> Tensor:
        """[B, L] float32 with gradient: the log-probabilities of `statistics`."""
        return self.statistics(rollout).logprobs

    @abstractmethod
    def _levels(self, tokens: Tensor) -> Tensor:
        """[B, 3, H, W] uint8: images of at most `decoded_at_once` rows [B, L], no image depending on another."""

    def levels(self, tokens: Tensor) -> Tensor:
        """[B, 3, H, W] uint8, where the model is: the images of tokens [B, L]."""
        device = next(self.module.parameters()).device
        with torch.no_grad():
            return torch.cat([self._levels(part) for part in tokens.to(device).split(self.decoded_at_once)])

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        """Images of tokens [B, L]."""
        return as_images(self.levels(tokens))

    def texts(self, tokens: Tensor) -> list[str]:
        """[B] the text that was written before each image of tokens [B, L]; "" where the family writes none."""
        return [""] * len(tokens)

    def chosen(self, tokens: Tensor) -> Tensor:
        """[B, L] whether each of the tokens [B, L] was a choice: what could be no other has no part in a mean."""
        return torch.ones_like(tokens, dtype=torch.bool)

    def code_embeddings(self) -> Tensor:
        """[K, d] where each code lies in what images are decoded from; raises ValueError where it is not told."""
        raise ValueError(f"{self.spec.name} tells no embeddings of its codes; take token weights none.")

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        """Images of the first k tokens [B, k], of full size, what is not yet drawn left blank.

        Raises:
            ValueError: where the family has no such images.
        """
        raise ValueError(f"{self.spec.name} shows finished images only, got {tokens.shape[1]} tokens; draw them all.")

    def soft_pixels(self, embeddings: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1, with gradient, of any points [B, L, d] of the space of `code_embeddings`.

        Raises:
            ValueError: where the family's decoder has no gradient.
        """
        raise ValueError(f"{self.spec.name} decodes whole codes only, got embeddings; use `decode`.")

    def continue_from(
        self,
        prompts: Sequence[str],
        tokens: Tensor,
        *,
        places: Sequence[int],
        seed: int,
        until: int | None = None,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Tokens [B, until] of rows whose first k tokens [B, k] are drawn; k may be 0.

        A row ends as `sample` with this seed would end it: it is the image of its prompt at its place in the group,
        if that begins with these tokens.

        Args:
            prompts: [B] of each row.
            tokens: [B, k] long.
            places: [B] which image of its prompt, from 0, each row is.
            seed: as in `sample`.
            until: how many tokens a row is to have; all by default.
            sampling: as in `sample`.

        Raises:
            ValueError: where the family cannot be resumed, or the lengths do not fit.
        """
        raise ValueError(f"{self.spec.name} draws whole images only, got rows to continue; use `sample`.")


class Generators(Registry[Generator]):
    """The table of generators."""

    def load(self, name: str, **options: Any) -> Generator:
        """See `Registry.load`; weights of one's own, too, may have low-rank changes beside them."""
        generator = super().load(name, **options)
        if weights := self.parted(name)[1].get("weights"):
            load_on(generator.module, Path(weights).expanduser(), generator.spec.name)
        return generator


GENERATORS = Generators(
    "generator",
    "rwk.policy_opt.generator:Generator",
    {
        "anole.7b_v01": "rwk.adapters.anole:Anole",
        "emu3.gen": "rwk.adapters.emu3:Emu3Gen",
        "janus.pro_1b": "rwk.adapters.janus:JanusPro",
        "janus.pro_1b_plan": "rwk.adapters.janus_plan:JanusPlan",
        "janus.pro_7b": "rwk.adapters.janus:JanusPro7B",
        "janus.pro_7b_plan": "rwk.adapters.janus_plan:JanusPlan7B",
        "janus.v1_3b": "rwk.adapters.janus:Janus",
        "llamagen.c2i_3b_384": "rwk.adapters.llamagen_c2i:ThreeB384",
        "llamagen.c2i_b_256": "rwk.adapters.llamagen_c2i:Base256",
        "llamagen.c2i_b_384": "rwk.adapters.llamagen_c2i:Base384",
        "llamagen.c2i_l_256": "rwk.adapters.llamagen_c2i:Large256",
        "llamagen.c2i_l_384": "rwk.adapters.llamagen_c2i:Large384",
        "llamagen.c2i_xl_384": "rwk.adapters.llamagen_c2i:Xl384",
        "llamagen.c2i_xxl_384": "rwk.adapters.llamagen_c2i:Xxl384",
        "llamagen.t2i_xl_256": "rwk.adapters.llamagen_t2i:Xl256",
        "llamagen.t2i_xl_512": "rwk.adapters.llamagen_t2i:Xl512",
        "shapes.llama": "rwk.adapters.shapes_generator:ShapesLlama",
        "shapes.plan": "rwk.adapters.shapes_plan:ShapesPlan",
        "shapes.scales": "rwk.adapters.shapes_scales:ShapesScales",
        "showo.256": "rwk.adapters.showo:Showo",
        "showo.512": "rwk.adapters.showo:Showo512",
        "showo.512_base": "rwk.adapters.showo:Showo512Base",
        "showo.clip_256": "rwk.adapters.showo:ShowoClip",
        "showo.clip_512": "rwk.adapters.showo:ShowoClip512",
        "simplear.rl_0_5b": "rwk.adapters.simplear:SimpleArRl",
        "simplear.rl_1_5b": "rwk.adapters.simplear:SimpleArRlLarge",
        "simplear.sft_0_5b": "rwk.adapters.simplear:SimpleArSft",
        "simplear.sft_1_5b": "rwk.adapters.simplear:SimpleArSftLarge",
        "var.d16": "rwk.adapters.var:Var16",
        "var.d20": "rwk.adapters.var:Var20",
        "var.d24": "rwk.adapters.var:Var24",
        "var.d30": "rwk.adapters.var:Var30",
        "var.d36": "rwk.adapters.var:Var36",
    },
)

register = GENERATORS.register
names = GENERATORS.names
load = GENERATORS.load
