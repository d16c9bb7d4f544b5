"""Any CLIP of transformers as a reward: how near it embeds a picture and its prompt, as a cosine or as CLIPScore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from rwk.adapters import pickscore
from rwk.adapters.clip_towers import cosine, seeded, small
from rwk.adapters.clipscore import MEASURED_ON, PublishedFormula
from rwk.adapters.hub_refusals import remedy
from rwk.adapters.pickscore import PickScore, TransformersTowers
from rwk.adapters.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from rwk.adapters.pretrained import FILES, read_shards
from rwk.adapters.published import Origin, fill, find, hub_is_near
from rwk.rewards.base import RewardSpec
from rwk.rewards.errors import RunFailed
from rwk.rewards.networks import Networks

_FILTERS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of them."""


class TransformersCosine(TransformersTowers):
    """`cos(image, prompt)` by any CLIP of transformers, neither prefixed, scaled nor cut off.

    `transformers:MODEL` takes a folder in the layout of transformers, or a repository of the hub such as
    `openai/clip-vit-base-patch32`; of `transformers:REPOSITORY@FOLDER` the files are in the folder.

    Sizes, GELU and end of text are those of its config.json, mean, std, filter and crop those of its
    preprocessor_config.json, in Pillow's arithmetic and with the margin rounded down, as transformers crops. Prompts
    are read by the tokenizer in the folder, or by CLIP's own where it holds none, which neither mends text nor
    unescapes HTML. `torchmetrics` gives 100 times this cosine.

    `transformers.clipscore:` and `transformers.noprefix:` in place of `transformers:` give CLIPScore's formula.
    """

    spec = RewardSpec(
        "transformers",
        "cosine",
        -1,
        1,
        "that of the weights",
        "https://huggingface.co/docs/transformers/model_doc/clip",
        differentiable=True,
    )
    drift = {"bfloat16": 1.2e-3}
    precision_note = MEASURED_ON
    model: ClassVar[str] = "openai/clip-vit-base-patch32"
    """Repository or folder."""

    @classmethod
    def of_model(cls, name: str, model: str) -> type[Self]:
        """The class of rewards on one CLIP of transformers.

        Args:
            name: what the reward is called.
            model: folder or repository.
        """
        origin = Origin(model, "", "", 0)
        made = {"spec": replace(cls.spec, name=name), "model": model, "origin": origin, "__doc__": cls.__doc__}
        folder = Path(model).expanduser()
        if folder.is_dir():
            made["shipped"] = folder
        return type(cls.__name__, (cls,), made | {"__module__": cls.__module__})

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        networks: Networks | None = None,
    ) -> None:
        """
        Args:
            weights: a folder that holds the files of the repository; by default they come from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            networks: those of the rewards that are loaded together with this one, which it shares.
        """
        own = getattr(self, "shipped", None)
        folder = own if weights is None else Path(weights).expanduser()
        config = self._settings("config.json", folder, revision)
        if config.get("model_type") != "clip":
            raise ValueError(
                f"{self.spec.name} needs a CLIP of transformers, got model_type {config.get('model_type')!r}; "
                f"SigLIP is siglip.* and siglip2.*, for others name open_clip:MODEL."
            )
        self.preprocess = preprocessing(  # type: ignore[misc]
            self.spec.name, self._settings("preprocessor_config.json", folder, revision)
        )
        self.context = config.get("text_config", {}).get("max_position_embeddings", 77)  # type: ignore[misc]
        self._vocabulary = folder, revision

        def make() -> nn.Module:
            tensors = self.converted(read_shards(self.spec.name, origin, folder, revision))
            network = network_of(config)
            fill(self.spec.name, network, tensors)
            return network

        origin = replace(self.origin, file=self._file(folder, revision))
        path = find(self.spec.name, origin, folder, revision, by_hand=self._by_hand())
        self._take((networks or Networks()).get(("clip of transformers", path.resolve(), device), make), device)

    def _by_hand(self) -> str:
        return f"copy the folder of {self.model} here and name it as {{name}}@PATH"

    def _file(self, folder: Path | None, revision: str | None) -> str:
        """The one of `FILES` that the folder or repository holds; the usual one where none can be found."""
        from huggingface_hub.errors import EntryNotFoundError

        if folder is not None:
            return next((file for file in FILES if (folder / file).is_file()), "model.safetensors")
        for file in ("model.safetensors", *FILES):
            try:
                find(self.spec.name, replace(self.origin, file=file), None, revision)
            except RunFailed as error:
                if not isinstance(error.__cause__, EntryNotFoundError):
                    raise
            else:
                return file
        return "model.safetensors"

    def _settings(self, file: str, folder: Path | None, revision: str | None) -> dict[str, Any]:
        path = find(self.spec.name, replace(self.origin, file=file), folder, revision, by_hand=self._by_hand())
        try:
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} must hold a JSON object, got {error}; download it again.") from error
        return held

    @classmethod
    def build(cls) -> nn.Module:
        raise NotImplementedError("its size is known once config.json is read")

    @classmethod
    def tiny(cls) -> Self:
        with seeded(5):
            small_one: Any = PickScore.tiny().network
            made = network_of(small_one.config.to_dict())
        return cls.of(made, preprocess=small(Preprocess(224, rounding="floor")), tokenizer=pickscore.tokenizer())

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, loaded when the first prompt comes."""
        from transformers import AutoTokenizer

        folder, revision = self._vocabulary
        files = ("tokenizer.json", "vocab.json")
        if folder is not None and not any((folder / file).is_file() for file in files):
            return pickscore.tokenizer()
        try:
            if folder is not None:
                return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            return AutoTokenizer.from_pretrained(self.model, revision=revision, local_files_only=not hub_is_near())
        except (OSError, ValueError) as error:
            raise RunFailed(
                f"{self.spec.name} needs the tokenizer of {folder or self.model}, which cannot be loaded "
                f"({type(error).__name__}); {remedy(error, revision)}; without, "
                f"{self._by_hand().format(name=self.spec.name)}."
            ) from error

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        return cosine(image, text)


class TransformersScore(PublishedFormula, TransformersCosine):
    """CLIPScore's formula, prefix and all, by any CLIP of transformers: `2.5 * max(cos(image, prefix + prompt), 0)`.

    `transformers.clipscore:` takes what `transformers:` takes, which tells how pictures and prompts are read.
    """

    spec = replace(TransformersCosine.spec, unit="2.5 times cosine, 0 where negative", low=0, high=2.5)
    tolerance = 0.0125


class TransformersScoreNoPrefix(TransformersScore):
    """CLIPScore's formula without the prefix, by any CLIP of transformers: `2.5 * max(cos(image, prompt), 0)`.

    `transformers.noprefix:` takes what `transformers:` takes, which tells how pictures and prompts are read.
    """

    prefix = ""


def network_of(config: Mapping[str, Any]) -> nn.Module:
    """The CLIP of a config.json, its weights random."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**config))


def preprocessing(name: str, settings: Mapping[str, Any]) -> Preprocess:
    """What a preprocessor_config.json of CLIP says.

    Args:
        name: the reward that asks.
        settings: the file; what it leaves out is as in CLIP of OpenAI.

    Raises:
        ValueError: for a way to prepare pictures that no CLIP has.
    """
    size, crop = settings.get("size", 224), settings.get("crop_size", 224)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    cropped = settings.get("do_center_crop", True)
    sides = set(crop.values()) if cropped else set(size.values())
    fit = "crop" if "shortest_edge" in size else "squash"
    whole = all(settings.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize"))
    known = settings.get("resample", 3) in _FILTERS and abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    if not whole or not known or len(sides) != 1 or set(size.values()) != sides or (fit == "crop") != cropped:
        raise ValueError(
            f"{name} needs a preprocessor_config.json that resizes the shorter side and crops that square, or "
            f"squashes to a square, then rescales and normalises, got {dict(settings)}; take the published one."
        )
    return Preprocess(
        sides.pop(),
        fit=fit,  # type: ignore[arg-type]
        rounding="floor",
        interpolation=_FILTERS[settings.get("resample", 3)],  # type: ignore[arg-type]
        mean=tuple(settings.get("image_mean", CLIP_MEAN)),
        std=tuple(settings.get("image_std", CLIP_STD)),
    )
