"""HPSv3 (Ma et al., 2025): how much people will prefer an image for its prompt, by a fine-tuned Qwen2-VL of 7B."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.preprocess import CLIP_MEAN, CLIP_STD
from rwk.adapters.pretrained import load_tokenizer, load_whole
from rwk.adapters.published import Origin, fill, find, read
from rwk.adapters.questions import HPSV3
from rwk.adapters.vlm import tiny_vlm
from rwk.rewards.base import PixelReward, RewardSpec, Scores
from rwk.rewards.precision import in_float32
from rwk.rewards.tunable import HeadKind, ScaledHead, Tunable

REWARD = "<|Reward|>"
"""The token at whose place the head reads; the checkpoint adds it to Qwen2-VL's vocabulary."""
IMAGE = "<|image_pad|>"
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
PATCH, MERGE = 14, 2
"""Pixels of a patch along a side, and patches along a side that make one token of the language model."""
LONGEST = 200
"""Times the short side that an image may be long, the limit of Qwen2-VL's code."""


class HpsV3Network(nn.Module):
    """Qwen2-VL without its vocabulary head, and the head that makes mu and sigma of one hidden state."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.rm_head = nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        )
        for key, buffer in backbone.named_buffers():
            if key.endswith(".inv_freq"):  # the authors' code casts the whole model, rotary frequencies too
                buffer.copy_(buffer.bfloat16().float())

    def forward(self, ids: Tensor, mask: Tensor, patches: Tensor, grid: Tensor, place: Tensor) -> Tensor:
        """[B, 2] mu and sigma in float32; takes what `states` takes."""
        states = self.states(ids, mask, patches, grid, place)
        return in_float32(self.rm_head, states)

    def states(self, ids: Tensor, mask: Tensor, patches: Tensor, grid: Tensor, place: Tensor) -> Tensor:
        """[B, D] states, of ids [B, L], patches [sum of patches, 1176] and the place [B] to read at.

        The positions are 0 to L - 1 along all three axes. Qwen2-VL numbers image tokens by row and column, and
        transformers does so today; the release that HPSv3 was trained with did not.
        """
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=patches,
            image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state  # [B, L, D]
        read: Tensor = hidden[torch.arange(len(ids), device=ids.device), place]
        return read


class HpsV3(Tunable, PixelReward):
    """mu, the mean of a normal distribution of human preference: rm_head(h) at `<|Reward|>`, first of two outputs.

    From `MizzenAI/HPSv3`, file `HPSv3.safetensors` (keys of transformers 4.45), with the tokenizer of
    `Qwen/Qwen2-VL-7B-Instruct`. Pillow resizes an image to about 256 tokens of 28x28 pixels, its shape kept.
    The network runs in bfloat16, as published, or in another type; the head in float32. Traps: positions (see the
    network), rotary frequencies rounded to bfloat16, and a vocabulary cut to the tokenizer's length.

    `score_pixels` resizes floats, which differ from Pillow's rounded weights by at most 2 of 255 grey levels.
    """

    spec = RewardSpec("hpsv3.v3", "mu", -math.inf, math.inf, "MIT", "arXiv:2508.03789", differentiable=True)
    origin: ClassVar[Origin] = Origin("MizzenAI/HPSv3", "HPSv3.safetensors", "MIT", 16_600)
    base: ClassVar[str] = "Qwen/Qwen2-VL-7B-Instruct"
    area: int = 256 * 28 * 28
    """Pixels that an image has after the resize, about."""
    tolerance = 5e-4
    casts = True
    drift = {"bfloat16": 2.2e-3}
    precision_note = "measured on 4 of its 28 layers"

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
            weights: the published file, or a folder that holds it and perhaps the tokenizer's files; by default both
                come from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            dtype: of the network but its head: "bfloat16", "float16" or "float32".

        Raises:
            ValueError: for a file that is not this checkpoint.
            RunFailed: where the checkpoint or the tokenizer cannot be had.
        """
        path = find(self.spec.name, self.origin, weights, revision)
        tokenizer = load_tokenizer(self.spec.name, self.base, path)
        self._take(self._network(read(path), getattr(torch, dtype)), tokenizer, device)

    @classmethod
    def _network(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> HpsV3Network:
        """The network filled with the published tensors, every one of them but the vocabulary head."""
        from transformers import Qwen2VLModel

        head = {key.removeprefix("rm_head."): value for key, value in tensors.items() if key.startswith("rm_head.")}
        rest = {
            "language_" + key if key.startswith("model.") else key: value.to(dtype)
            for key, value in tensors.items()
            if not key.startswith(("rm_head.", "lm_head."))
        }
        words = len(rest.get("language_model.embed_tokens.weight", ()))
        config = cls.config(words)
        backbone = load_whole(cls.spec.name, Qwen2VLModel, None, config=config, state_dict=rest, dtype=dtype)
        network = HpsV3Network(backbone, config.text_config.hidden_size)
        fill(cls.spec.name, network.rm_head, head)
        return network

    @classmethod
    def config(cls, words: int) -> Any:
        """transformers' configuration of Qwen2-VL-7B with a vocabulary of that many tokens."""
        from transformers import Qwen2VLConfig

        return Qwen2VLConfig(
            text_config={
                **{"vocab_size": words, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
                **{"num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            }
        )

    def _take(self, network: HpsV3Network, tokenizer: Any, device: str = "cpu") -> Self:
        super().__init__(device=device)
        if REWARD not in tokenizer.get_vocab():
            tokenizer.add_tokens([REWARD], special_tokens=True)
        tokenizer.padding_side = "right"
        self.network, self.tokenizer = network.eval().requires_grad_(False).to(device), tokenizer
        self.place = tokenizer.convert_tokens_to_ids(REWARD)
        known = len(network.backbone.get_parameter("language_model.embed_tokens.weight"))
        if known != self.place + 1:  # the token that was added last
            raise ValueError(
                f"{self.spec.name} needs a tokenizer of {known} tokens, {REWARD} the last, got "
                f"{len(tokenizer)}; give that of {self.base}."
            )
        return self

    @classmethod
    def of(cls, network: HpsV3Network, tokenizer: Any, *, area: int, device: str = "cpu") -> Self:
        """The reward around a network of any size that reads images of about that many pixels."""
        reward = cls.__new__(cls)
        reward.area = area
        return reward._take(network, tokenizer, device)

    @classmethod
    def tiny(cls) -> Self:
        words = re.findall(" ?[a-zA-Z]+", HPSV3)  # by bytes alone the question would be thousands of tokens
        vlm = tiny_vlm(cls.spec.name, words, added=[REWARD])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = HpsV3Network(vlm.network.model, 32)
            for weight in network.rm_head.parameters():
                nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5)
        return cls.of(network, vlm.tokenizer, area=4 * 28 * 28)

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize: multiples of 28, of about `area` pixels, and of nearly the same shape."""
        unit = PATCH * MERGE
        sides = [max(unit, round(side / unit) * unit) for side in (width, height)]
        scale = math.sqrt(width * height / self.area)
        if math.prod(sides) > self.area:
            sides = [max(unit, math.floor(side / scale / unit) * unit) for side in (width, height)]
        elif math.prod(sides) < self.area:
            sides = [math.ceil(side / scale / unit) * unit for side in (width, height)]
        return sides[0], sides[1]

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return self._mu(self.prepared_pixels(pixels), prompts)

    def prepared_pixels(self, pixels: Tensor) -> list[Tensor]:
        width, height = self.fitted(pixels.shape[3], pixels.shape[2])
        if (height, width) != tuple(pixels.shape[2:]):
            pixels = interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
            pixels = pixels.clamp(0, 1)  # as 8-bit pixels are
        return [image[None] for image in pixels]

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        made = [self.refusal(prompt) or self.prepare(image) for image, prompt in zip(images, prompts, strict=True)]
        values = torch.full([len(images)], math.nan)
        taken = [i for i, each in enumerate(made) if not isinstance(each, str)]
        if taken:
            ready = [each for each in made if not isinstance(each, str)]
            values[taken] = self._mu(self.prepared(ready), [prompts[i] for i in taken]).cpu()
        return Scores(values, [each if isinstance(each, str) else "" for each in made])

    def prepare(self, image: Image.Image) -> Tensor | str:
        if max(image.size) > LONGEST * min(image.size):
            return f"may be at most {LONGEST} times as long as wide, got {image.width}x{image.height}"
        return pil_to_tensor(image.resize(self.fitted(*image.size), Image.Resampling.BICUBIC))  # type: ignore[no-any-return]

    def prepared(self, ready: Sequence[Tensor]) -> list[Tensor]:
        return [image[None].to(self.device, torch.float32) / 255 for image in ready]

    def refusal(self, prompt: str) -> str:
        token = next((token for token in (*self.tokenizer.all_special_tokens, IMAGE, REWARD) if token in prompt), "")
        return f"the prompt holds {token}, which the model would take for a command" if token else ""

    def trunk(self) -> nn.Module:
        return self.network

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        if kind == "likelihood":
            raise ValueError(
                f"{self.spec.name} has a head of its own and no answers, got --head likelihood; leave it out."
            )
        head, self.network.rm_head = ScaledHead(self.network.rm_head), nn.Sequential()
        return head

    def features(self, prepared: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        states: Tensor = self.network.states(*self._read(prepared, prompts))
        return states.float()

    def _mu(self, pixels: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """[B] scores of pixels [1, 3, H, W] each, resized already."""
        made: Tensor = self.network(*self._read(pixels, prompts))
        return made[:, 0]

    def _read(self, pixels: Sequence[Tensor], prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """What the network takes."""
        grids = [(1, image.shape[2] // PATCH, image.shape[3] // PATCH) for image in pixels]
        texts = [self.text(prompt, math.prod(grid) // MERGE**2) for prompt, grid in zip(prompts, grids, strict=True)]
        read = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        places = (read.input_ids == self.place).int().argmax(1)
        patches = torch.cat([_patches(image) for image in pixels]).to(next(self.network.backbone.parameters()).dtype)
        grid = torch.tensor(grids, device=self.device)
        return read.input_ids, read.attention_mask, patches, grid, places

    @staticmethod
    def text(prompt: str, tokens: int) -> str:
        """What the network reads about a prompt, the image as that many tokens."""
        return BEFORE + IMAGE * tokens + "<|vision_end|>" + HPSV3.replace("{text_prompt}", prompt) + AFTER


def _patches(pixels: Tensor) -> Tensor:
    """[N, 1176] normalised patches of pixels [1, 3, H, W] in 0..1, a token's side by side, each for two frames."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    side = PATCH * MERGE
    cells = ((pixels[0] - mean) / std).unfold(1, side, side).unfold(2, side, side)  # [3, H / 28, W / 28, 28, 28]
    parts = cells.unflatten(4, (MERGE, PATCH)).unflatten(3, (MERGE, PATCH))  # [3, H / 28, W / 28, 2, 14, 2, 14]
    rows = parts.permute(1, 2, 3, 5, 0, 4, 6)  # [H / 28, W / 28, 2, 2, 3, 14, 14]
    frames: Tensor = rows.flatten(0, 3).unsqueeze(2).expand(-1, -1, 2, -1, -1)  # [N, 3, 2, 14, 14]
    return frames.flatten(1)
