"""Any model of open_clip as a reward: how near it embeds a picture and its prompt, as a cosine or as CLIPScore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from rwk.adapters import clip_towers
from rwk.adapters.attention import quick_in_half
from rwk.adapters.clip_towers import ONE_FILE, OpenClipReward, cosine
from rwk.adapters.clipscore import MEASURED_ON, PublishedFormula
from rwk.adapters.preprocess import FITS, Preprocess
from rwk.adapters.published import Origin, beside, find
from rwk.rewards.base import RewardSpec
from rwk.rewards.errors import RunFailed
from rwk.rewards.networks import Networks

QUICK = "-quickgelu"
"""What open_clip appends to the name of an architecture that runs the approximate GELU."""
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What a repository holds where open_clip names no file; the second where it lacks the first."""
_SOURCE = "https://github.com/mlfoundations/open_clip"


class OpenClipCosine(OpenClipReward):
    """`cos(image, prompt)` by any model of open_clip, neither prefixed, scaled nor cut off.

    `open_clip:ARCH/TAG` takes the weights that open_clip publishes under that tag, `open_clip:ARCH/TAG@FILE` the same
    from a file or folder on this machine, and `open_clip:ARCH@FILE` weights of one's own. `open_clip:ARCH` alone is
    enough where there is one tag. A file may also have the layout of transformers.

    Mean, std, filter and crop or squash are those that open_clip keeps for the tag, and so is the GELU, which open_clip
    itself takes from ARCH and only warns of. Without a tag they are those of all tags of ARCH, or open_clip's own where
    these differ; the GELU is then ARCH's: name `ViT-B-32-quickgelu` for one tuned from OpenAI's weights. A prompt is
    read by the model's own tokenizer, which comes from the hub where it is not CLIP's, or from beside the weights.

    `open_clip.clipscore:` and `open_clip.noprefix:` in place of `open_clip:` give CLIPScore's formula. As a base of
    `rwk train-reward`, `open_clip:ARCH/TAG` has the model's scale besides.
    """

    spec = RewardSpec("open_clip", "cosine", -1, 1, "that of the weights", _SOURCE, differentiable=True)
    architecture = "ViT-B-32"
    drift = {"bfloat16": 1.2e-3}
    precision_note = MEASURED_ON
    preprocess = Preprocess(224)
    unclear: ClassVar[str] = ""
    """Why the name does not say which weights, or ""."""
    files = (*FILES, *ONE_FILE)
    _beside: Path | None = None
    """Folder of a tokenizer of one's own."""

    @classmethod
    def of_model(cls, name: str, model: str) -> type[Self]:
        """The class of rewards on one model of open_clip.

        Args:
            name: what the reward is called.
            model: `ARCH` or `ARCH/TAG`.

        Raises:
            ValueError: for an architecture or a tag that open_clip does not have.
        """
        import open_clip

        plain, slash, tag = model.partition("/")
        config, tags = open_clip.get_model_config(plain), open_clip.list_pretrained_tags_by_model(plain)
        if config is None:
            raise ValueError(f"{name} must name a model of open_clip, got {plain!r}; take one such as ViT-B-32.")
        if slash and tag not in tags:
            raise ValueError(f"open_clip has no weights {tag!r} of {plain}; there are {', '.join(tags) or 'none'}.")
        tag = tag or (tags[0] if len(tags) == 1 else "")
        published = [open_clip.get_pretrained_cfg(plain, each) for each in ([tag] if tag else tags)]
        quick = bool(tag and published[0].get("quick_gelu")) and not config.get("quick_gelu")
        made: dict[str, Any] = {
            "__doc__": cls.__doc__,
            "__module__": cls.__module__,
            "spec": replace(cls.spec, name=name),
            "architecture": plain + QUICK if quick else plain,
            "context": config["text_cfg"].get("context_length", 77),
            "preprocess": _preprocess(config["vision_cfg"].get("image_size", 224), published),
            "unclear": "" if tag else f"{name} has {len(tags)} published weights ({', '.join(tags) or 'none'})",
            "origin": _origin(published[0]) if tag else Origin(f"open_clip's {plain}", FILES[0], "", 0),
        }
        return type(cls.__name__, (cls,), made)

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        networks: Networks | None = None,
    ) -> None:
        super().__init__(weights=weights, revision=revision, device=device, networks=networks)
        self._beside = beside(weights, "tokenizer_config.json")

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        """Where the weights are published; raises ValueError where the name stands for several."""
        if cls.unclear:
            raise ValueError(f"{cls.unclear}; name one as ARCH/TAG, or a file as {cls.spec.name}@FILE.")
        return (cls.origin,)

    @classmethod
    def found(cls, weights: str | Path | None, revision: str | None) -> Path:
        if weights is None:
            cls.origins()
        try:
            return super().found(weights, revision)
        except RunFailed as error:
            from huggingface_hub.errors import EntryNotFoundError

            if cls.origin.file != FILES[0] or not isinstance(error.__cause__, EntryNotFoundError):
                raise
            try:
                return find(cls.spec.name, replace(cls.origin, file=FILES[1]), None, revision)
            except RunFailed:
                raise error from None

    @classmethod
    def config(cls) -> dict[str, Any]:
        import open_clip

        found = open_clip.get_model_config(cls.architecture)
        return found or {**open_clip.get_model_config(cls.architecture.removesuffix(QUICK)), "quick_gelu": True}

    @classmethod
    def build(cls) -> nn.Module:
        import open_clip

        config = cls.config()
        apart = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if apart else open_clip.CLIP
        for part, key, library in (("vision_cfg", "timm_model_name", "timm"), ("text_cfg", "hf_model_name", "hf")):
            if key in config[part]:
                config[part][f"{library}_model_pretrained"] = False  # its own weights are not wanted
        try:
            made: nn.Module = kind(**config)
        except OSError as error:
            raise RunFailed(
                f"{cls.spec.name} needs the config of its text model, which is not in the cache and cannot be "
                f"downloaded ({type(error).__name__}); with a network, unset HF_HUB_OFFLINE and run again."
            ) from error
        return quick_in_half(made)

    @classmethod
    def tiny(cls) -> Self:
        made = super().tiny()
        made.tokenizer = clip_towers.tokenizer()
        made.context = 77  # type: ignore[misc]
        return made

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the keys of today's open_clip, which renamed those of the text tower of some models."""
        from open_clip.model import convert_to_custom_text_state_dict

        found = super().converted(tensors)
        config = cls.config()
        if config.get("custom_text") or "hf_model_name" in config["text_cfg"]:
            found = convert_to_custom_text_state_dict(found)
        for key in ("logit_scale", "logit_bias"):
            if key in found:
                found[key] = found[key].reshape(())
        return {key: value for key, value in found.items() if not key.endswith(".position_ids")}

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, loaded when the first prompt comes."""
        import open_clip
        from open_clip.tokenizer import HFTokenizer

        text = self.config()["text_cfg"]
        try:
            if self._beside is None or "hf_tokenizer_name" not in text:
                return open_clip.get_tokenizer(self.architecture.removesuffix(QUICK))
            kwargs = text.get("tokenizer_kwargs", {})
            mode = text.get("tokenizer_mode")
            return HFTokenizer(str(self._beside), self.context, tokenizer_mode=mode, **kwargs)
        except (OSError, ValueError, ImportError) as error:
            raise RunFailed(
                f"{self.spec.name} needs the tokenizer {text.get('hf_tokenizer_name')}, which cannot be loaded "
                f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.100}); with a network, unset "
                f"HF_HUB_OFFLINE and run again; without, copy its files beside the weights and name their folder as "
                f"{self.spec.name}@PATH."
            ) from error

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        return cosine(image, text)

    @property
    def tower(self) -> nn.Module:
        from open_clip import CoCa

        return self.network if isinstance(self.network, CoCa) else super().tower  # whose picture tower gives tokens too

    def image_features(self, pixels: Tensor) -> Tensor:
        network: Any = self.network
        features: Tensor = network.encode_image(pixels)
        return features

    def text_features(self, prompts: list[str]) -> Tensor:
        from open_clip import CLIP, SimpleTokenizer

        network: Any = self.network
        if isinstance(self.tokenizer, SimpleTokenizer):
            if type(network) is CLIP and network.text_pool_type == "argmax" and network.attn_mask is not None:
                return super().text_features(prompts)
            lengths = [len(self.tokenizer.encode(prompt)) + 2 for prompt in prompts]
        else:
            clean, inner = self.tokenizer.clean_fn, self.tokenizer.tokenizer
            lengths = [len(ids) for ids in inner([clean(prompt) for prompt in prompts], verbose=False)["input_ids"]]
        self.warn_of_cut(prompts, lengths)
        features: Tensor = network.encode_text(self.tokenizer(prompts).to(self.device))
        return features


class OpenClipScore(PublishedFormula, OpenClipCosine):
    """CLIPScore's formula, prefix and all, by any model of open_clip: `2.5 * max(cos(image, prefix + prompt), 0)`.

    `open_clip.clipscore:` takes what `open_clip:` takes, which tells how pictures and prompts are read.
    """

    spec = replace(OpenClipCosine.spec, unit="2.5 times cosine, 0 where negative", low=0, high=2.5)
    tolerance = 0.0125


class OpenClipScoreNoPrefix(OpenClipScore):
    """CLIPScore's formula without the prefix, by any model of open_clip: `2.5 * max(cos(image, prompt), 0)`.

    `open_clip.noprefix:` takes what `open_clip:` takes, which tells how pictures and prompts are read.
    """

    prefix = ""


def _origin(published: Mapping[str, Any]) -> Origin:
    """The file of a tag."""
    hub, _, file = published["hf_hub"].rpartition("/")
    return Origin(hub, file or FILES[0], "", 0)


def _preprocess(size: int, published: Sequence[Mapping[str, Any]]) -> Preprocess:
    """What all these tags have, or open_clip's default for a file of weights."""
    found = {
        Preprocess(
            size,
            fit=FITS[each["resize_mode"]],
            interpolation=each["interpolation"],
            mean=tuple(each["mean"]),
            std=tuple(each["std"]),
        )
        for each in published
    }
    return found.pop() if len(found) == 1 else Preprocess(size)
