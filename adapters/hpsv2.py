"""HPSv2 (Wu et al., 2023): CLIP ViT-H/14 trained on which pictures people prefer, versions 2.0 and 2.1."""

from __future__ import annotations

from torch import Tensor

from rwk.adapters.clip_towers import OpenClipReward, cosine
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin
from rwk.rewards.base import RewardSpec


def _spec(variant: str) -> RewardSpec:
    return RewardSpec(f"hpsv2.{variant}", "cosine", -1, 1, "Apache-2.0", "arXiv:2306.09341", differentiable=True)


def _origin(file: str) -> Origin:
    return Origin("xswu/HPSv2", file, "Apache-2.0", 3944)


class Hpsv2(OpenClipReward):
    """HPS v2.0: `cos(image, prompt)`, without CLIP's scale; the authors' tables hold 100 times as much.

    Scores lie around 0.24 to 0.35 and compare pictures for one prompt; the authors say that pictures for different
    prompts cannot be compared.

    A picture is shrunk whole, and the rest of the square is black. The authors resize floats, where torchvision 0.17
    switched antialias on: the same package gives other scores since. This is the package with today's torchvision;
    `hpsv2.v20_legacy` is the score of its time. Under CUDA the package runs in half precision; here all is float32.
    The package cannot score a picture that has transparency, or whose longer side alone has 224 pixels; here the one
    stands on white, and the other in the middle of black. `score_pixels` is `score`.
    """

    spec = _spec("v20")
    origin = _origin("HPS_v2_compressed.pt")
    architecture = "ViT-H-14"
    preprocess = Preprocess(224, fit="letterbox", backend="float")
    tolerance = 0.0
    drift = {"bfloat16": 5.6e-4}

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        return cosine(image, text)


class Hpsv21(Hpsv2):
    """HPS v2.1: the network of `hpsv2.v20`, trained on more and better data; its scores spread more.

    Scores of the two versions are not on one scale.
    """

    spec = _spec("v21")
    origin = _origin("HPS_v2.1_compressed.pt")


class Hpsv2Legacy(Hpsv2):
    """HPS v2.0 as the package gave it before torchvision 0.17: pictures are shrunk without antialias."""

    spec = _spec("v20_legacy")
    preprocess = Preprocess(224, fit="letterbox", backend="float", antialias=False)


class Hpsv21Legacy(Hpsv21):
    """HPS v2.1 as the package gave it before torchvision 0.17: pictures are shrunk without antialias."""

    spec = _spec("v21_legacy")
    preprocess = Preprocess(224, fit="letterbox", backend="float", antialias=False)
