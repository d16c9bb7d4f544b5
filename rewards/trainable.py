"""Rewards with a network that preferences can move: what training needs of them."""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

from rwk.rewards.base import Reward
from rwk.rewards.errors import reading
from rwk.rewards.layers import add_lora
from rwk.rewards.precision import in_float32
from rwk.rewards.staged import PreparedReward, Ready


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input."""

    size: int
    """Height and width that the network takes, in pixels."""
    fit: Literal["squash", "crop"] = "squash"
    """`squash` resizes the whole image, `crop` its central square."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def image(self, image: Image.Image) -> Tensor:
        """[3, size, size] uint8 of an RGB image, resized by Pillow as the published models do."""
        box = _square(image.width, image.height) if self.fit == "crop" else None
        how = Image.Resampling[self.interpolation.upper()]
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), how, box=box)
        tensor: Tensor = pil_to_tensor(image)
        return tensor

    def pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, size, size], with gradient, of pixels [B, 3, H, W] in 0..1; `image` within a grey level or two."""
        if self.fit == "crop":
            left, top, right, bottom = _square(pixels.shape[3], pixels.shape[2])
            pixels = pixels[:, :, top:bottom, left:right]
        if pixels.shape[2:] == (self.size, self.size):
            return pixels
        size = [self.size, self.size]
        return interpolate(pixels, size, mode=self.interpolation, antialias=True).clamp(0, 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..1 as the network was trained to see them."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def _square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


class Trainable(Reward):
    """A reward whose score is a small head over features of a network: what training takes, measures and saves.

    Training moves the head alone (probe), the head and low-rank changes of the network (lora), or everything (full).
    """

    registered: ClassVar[str]
    """The name of the class in the registry, which a saved folder holds."""
    keeps_lora: ClassVar[bool] = False
    """Whether low-rank changes are saved beside the weights that they change, or merged into them first."""
    casts = True
    module: nn.Module
    """The network; its part `head` makes [B] scores of [B, D] features and has `rescale(factor)`."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor | str:
        """An RGB image as it is kept between two passes, uint8 or float32 of any shape; or why it gets no score."""

    @abstractmethod
    def prepared(self, ready: Sequence[Tensor]) -> Any:
        """What `features` takes, of a batch of what `prepare` made."""

    @abstractmethod
    def features(self, prepared: Any, prompts: Sequence[str]) -> Tensor:
        """[B, D] what the head sees of images and their prompts, with gradient."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors, from which `registry.load(folder)` builds the same reward."""

    def head(self, features: Tensor) -> Tensor:
        """[B] scores of features [B, D], with gradient."""
        return in_float32(self.module.get_submodule("head"), features)

    def refuse(self, prompts: Iterable[str]) -> None:
        """Raises ValueError for the first prompt that gets no score."""

    def lower(self, rank: int, seed: int) -> Any:
        """Adds low-rank changes to the network, and gives peft's model."""
        return add_lora(self.module, rank=rank, seed=seed)

    def widen(self) -> None:
        """Makes every weight one that can be trained by small steps."""


class TrainableReward(PreparedReward, Trainable):
    """A trainable reward that is kept whole, architecture and all.

    A subclass writes `registered`, `build`, `from_model` and `features`.
    """

    tolerance = 0.05
    """`score` resizes by Pillow to whole grey levels, as training does, `score_pixels` by torch."""

    def __init__(
        self,
        architecture: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
        *,
        name: str = "",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            architecture: what `build` takes.
            preprocessing: how images come in.
            name: what the reward calls itself in tables and messages.
            seed: of the random weights, which are drawn without touching the global generator.
            device: where the network runs.
        """
        super().__init__(device=device)
        if architecture is None or preprocessing is None:
            raise ValueError(
                f"{self.registered} is a kind of network and has no weights of its own; "
                f"name a folder that `rwk train-reward` wrote."
            )
        self.architecture = dict(architecture)
        self.preprocessing = preprocessing
        if name:
            self.spec = dataclasses.replace(self.spec, name=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = self.build(self.architecture, preprocessing)
        self.module.to(self.device).eval()

    @classmethod
    @abstractmethod
    def build(cls, architecture: Mapping[str, Any], preprocessing: Preprocessing) -> nn.Module:
        """The network with random weights."""

    @classmethod
    @abstractmethod
    def from_model(cls, model: str, *, image_size: int = 0, seed: int = 0, device: str = "cpu") -> Self:
        """The reward over a model that its library names, before any training.

        Args:
            model: `NAME` for random weights, `NAME@FILE` for those of a file; more under the class.
            image_size: height and width of the input in pixels; 0 takes the model's own.
        """

    @classmethod
    def check_model(cls, model: str) -> None:
        """Raises ValueError where `from_model` knows no such model, before it is built."""

    @abstractmethod
    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, D] what the head sees of pixels [B, 3, size, size] in 0..1 and their prompts, with gradient."""

    def prepared(self, ready: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(ready)).to(self.device) / 255

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, D] features of RGB images alone, whatever their prompts, without gradient."""
        with torch.no_grad():
            ready = [self.preprocessing.image(image) for image in images]
            return self.features(self.prepared(ready), [""] * len(images))

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return self.head(self.features(self.preprocessing.pixels(pixels), prompts))

    @property
    def preparation(self) -> Hashable:
        return self.preprocessing

    def prepare(self, image: Image.Image) -> Ready:
        return self.preprocessing.image(image)

    def score_taken(self, ready: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.head(self.features(self.prepared(list(ready)), prompts))

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        spec = {key: getattr(self.spec, key) for key in ("name", "unit", "licence", "source")}
        config = {
            "rwk_reward": self.registered,
            "spec": spec,
            "architecture": self.architecture,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }
        state = {key: value.detach().cpu().contiguous() for key, value in self.module.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        """The reward that `save` wrote; weights of any float type are computed with in float32."""
        from safetensors.torch import load_file

        with reading(folder, f"{cls.registered} reward"):
            config = json.loads((folder / "config.json").read_text())
            held = config["preprocessing"]
            preprocessing = Preprocessing(**held | {key: tuple(held[key]) for key in ("mean", "std")})
            reward = cls(config["architecture"], preprocessing, device=device)
            reward.spec = dataclasses.replace(reward.spec, **config["spec"])
            reward.module.load_state_dict(load_file(folder / "model.safetensors"))
        return reward
