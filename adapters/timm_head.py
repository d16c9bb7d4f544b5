"""Rewards of the image alone: a timm backbone and a linear head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rwk.rewards.base import RewardSpec
from rwk.rewards.errors import RunFailed
from rwk.rewards.trainable import Preprocessing, TrainableReward


class Head(nn.Module):
    """[B] linear functions of standardised features; there is no bias, as no preference could tell what it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, 1, bias=False)

    def rescale(self, factor: float) -> None:
        """Multiplies every score."""
        self.linear.weight.data.mul_(factor)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features)).squeeze(1)  # type: ignore[no-any-return]


class TimmNetwork(nn.Module):
    """A timm backbone that ends in pooled features, and the head."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(width)


class TimmHead(TrainableReward):
    """A linear head on the pooled features of any timm model; prompts are not looked at.

    As a base, `timm:NAME` is a model with random weights, `timm:NAME.TAG` with the published weights of that tag,
    `timm:NAME@FILE` with those of a file.
    """

    spec = RewardSpec(
        "timm_head",
        "log-odds of being preferred",
        low=-math.inf,
        high=math.inf,
        licence="n/a",
        source="doi:10.5281/zenodo.4414861",
        needs_prompt=False,
        differentiable=True,
    )
    registered = "timm_head"

    @classmethod
    def tiny(cls) -> TimmHead:
        return TimmHead({"model": "test_vit"}, Preprocessing(32))

    @classmethod
    def build(cls, architecture: Mapping[str, Any], preprocessing: Preprocessing) -> nn.Module:
        backbone = _create(architecture["model"], preprocessing.size)
        backbone.reset_classifier(0)
        return TimmNetwork(backbone, backbone.num_features)

    @classmethod
    def check_model(cls, model: str) -> None:
        import timm

        name, at, file = model.partition("@")
        plain, dot, tag = name.partition(".")
        if not timm.is_model(plain):
            close = ", ".join(timm.list_models(f"*{plain[:6]}*")[:3]) or "timm.list_models()"
            raise ValueError(f"timm knows no model {plain!r}; see {close}.")
        if dot and tag not in _tags(plain):
            raise ValueError(f"timm model {plain} has no weights {tag!r}; there are {', '.join(_tags(plain))}.")
        if at and not Path(file).is_file():
            raise ValueError(f"timm:{plain}@FILE names no file, got {file}.")

    @classmethod
    def from_model(cls, model: str, *, image_size: int = 0, seed: int = 0, device: str = "cpu") -> TimmHead:
        import timm

        cls.check_model(model)
        name, at, file = model.partition("@")
        plain, dot, _ = name.partition(".")
        known: Any = timm.get_pretrained_cfg(name)
        preprocessing = Preprocessing(
            image_size or known.input_size[-1],
            interpolation="bilinear" if known.interpolation == "bilinear" else "bicubic",
            mean=_three(known.mean),
            std=_three(known.std),
        )
        reward = cls({"model": plain}, preprocessing, name=plain, seed=seed, device=device)
        if at or dot:
            whole = _from_file(plain, preprocessing.size, Path(file)) if at else _fetch(name, preprocessing.size)
            whole.reset_classifier(0)
            reward.module.get_submodule("backbone").load_state_dict(whole.state_dict())
        return reward

    def features(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        pooled: Tensor = self.module.get_submodule("backbone")(self.preprocessing.normalised(pixels))
        return pooled.float()  # [B, D]


def _create(model: str, size: int, *, pretrained: bool = False) -> Any:
    import timm

    known = timm.get_pretrained_cfg(model)
    sized: dict[str, Any] = {"img_size": size} if known is not None and known.fixed_input_size else {}
    return timm.create_model(model, pretrained=pretrained, **sized)


def _from_file(model: str, size: int, file: Path) -> Any:
    from timm.models import load_checkpoint

    whole = _create(model, size)
    try:
        load_checkpoint(whole, str(file), weights_only=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"the weights in {file} do not fit timm model {model}: {error}") from error
    return whole


def _fetch(name: str, size: int) -> Any:
    import timm

    try:
        return _create(name, size, pretrained=True)
    except (OSError, RuntimeError) as error:
        known: Any = timm.get_pretrained_cfg(name)
        plain, reason = name.partition(".")[0], str(error).strip().partition("\n")[0]
        raise RunFailed(
            f"the weights of timm:{name} could not be had from {known.hf_hub_id or known.url} ({reason}); "
            f"put their file on this machine and name timm:{plain}@FILE, or name timm:{plain} for random weights."
        ) from error


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _tags(model: str) -> list[str]:
    import timm

    return [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]
