"""LAION's aesthetic predictors (Schuhmann, 2022): a head on CLIP's embedding of a picture, fitted to ratings."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn.functional import normalize

from rwk.adapters.clip_towers import OPENAI, SMALL, architecture, open_clip_network, picture_tower, seeded, small
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin, PublishedReward, beside, fill, find, read
from rwk.adapters.released import released
from rwk.rewards.base import RewardSpec
from rwk.rewards.networks import Networks
from rwk.rewards.staged import EmbeddedReward
from rwk.rewards.tunable import HeadKind, ScaledHead, own_head


def _spec(variant: str, licence: str, source: str) -> RewardSpec:
    unit = "mean rating, 1 to 10"
    return RewardSpec(
        f"aesthetic.{variant}",
        unit,
        -math.inf,
        math.inf,
        licence,
        source,
        needs_prompt=False,
        differentiable=True,
    )


class Predictor(nn.Module):
    """CLIP's picture tower and a head on what it embeds."""

    def __init__(self, tower: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head


class AestheticV2(EmbeddedReward, PublishedReward):
    """LAION's improved predictor: `head(x)`, where x is the embedding of a picture by CLIP ViT-L/14, of length 1.

    The head is five linear maps without anything between them, so the score is one affine function of x. It was fitted
    to mean ratings from 1 to 10 (SAC, logos, AVA); most pictures score 3 to 8. The file is
    `sac+logos+ava1-l14-linearMSE.pth` of the authors' repository on GitHub.

    CLIP is OpenAI's, with its approximate GELU, cropped as torchvision crops. Ports by way of transformers crop
    otherwise where the margin is odd. The prompt is not read. `score_pixels` stands from `score` as far as float32
    bicubic from Pillow's on 8 bits.
    """

    spec = _spec("v2", "Apache-2.0", "https://github.com/christophschuhmann/improved-aesthetic-predictor")
    origin = Origin(
        "github.com/christophschuhmann/improved-aesthetic-predictor",
        "sac+logos+ava1-l14-linearMSE.pth",
        "Apache-2.0; CLIP: MIT",
        4,
    )
    preprocess = Preprocess(224)
    tolerance = 0.05
    drift = {"bfloat16": 5.6e-5}
    architecture: ClassVar[str] = "ViT-L-14-quickgelu"
    """open_clip's name of the tower."""

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        tower: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        networks: Networks | None = None,
    ) -> None:
        """
        Args:
            weights: the published head, or a folder that holds it; by default it comes from the authors' repository.
            tower: CLIP's file in open_clip's layout, or a folder that holds it; by default it is looked for beside
                `weights`, and then comes from the hub.
            revision: branch, tag or commit of the tower's repository on the hub.
            device: where the network runs.
            networks: those of the rewards that are loaded together with this one, with which it shares the tower.
        """
        name, (origin, clip) = self.spec.name, self.origins()
        tower = tower or beside(weights, clip.file)
        if weights is None:
            weights = released(name, f"https://{origin.hub}/raw/main/{origin.file}", origin.megabytes)
        by_hand = f"copy it into one folder with {origin.file} and name that as {{name}}@PATH"
        head = find(name, origin, weights)
        tower = find(name, clip, tower, revision, by_hand=by_hand)
        tensors = read(head)  # before the network, which takes its time
        network: Any = self.build()
        fill(f"the head of {name}", network.head, tensors)

        def filled() -> nn.Module:
            fill(f"the tower of {name}", network.tower, self.converted(read(tower)))
            return cast(nn.Module, network.tower)

        network.tower = (networks or Networks()).get(picture_tower(self.architecture, tower, device), filled)
        self._take(network, device)

    @classmethod
    def origins(cls) -> tuple[Origin, Origin]:
        """Where head and tower are published."""
        return cls.origin, OPENAI[cls.architecture]

    @classmethod
    def build(cls) -> nn.Module:
        config = architecture(cls.architecture)
        return cls.predictor(config)

    @classmethod
    def tiny(cls) -> AestheticV2:
        with seeded():
            network = cls.predictor({**SMALL, "quick_gelu": True})
        return cls.of(network, preprocess=small(cls.preprocess))

    @classmethod
    def predictor(cls, config: dict[str, Any]) -> nn.Module:
        """Tower and head for that architecture of open_clip, their weights random."""
        tower = open_clip_network(config).get_submodule("visual")
        return Predictor(tower, cls.head(config["embed_dim"]))

    @classmethod
    def head(cls, width: int) -> nn.Module:
        """The head on embeddings of that width, by the names of the published file."""
        widths = (width, 1024, 128, 64, 16, 1)
        maps = [(str(name), nn.Linear(widths[i], widths[i + 1])) for i, name in enumerate((0, 2, 4, 6, 7))]
        return nn.Sequential(OrderedDict(layers=nn.Sequential(OrderedDict(maps))))

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of CLIP's tensors those of the picture tower."""
        kept = {key: value for key, value in tensors.items() if key.startswith("visual.")}
        return {key.removeprefix("visual."): value for key, value in kept.items()}

    @property
    def tower(self) -> nn.Module:
        return self.network.get_submodule("tower")

    @property
    def text_tower(self) -> None:
        return None

    def embed_ready(self, ready: Tensor) -> Tensor:
        embeddings: Tensor = self.tower(self.preprocess.normalised(ready.to(self.device)))
        return embeddings

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        scores: Tensor = self.network.get_submodule("head")(normalize(image, dim=1)).squeeze(1)  # [B]
        return scores

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        own_head(self.spec.name, kind)
        network: Any = self.network
        head, network.head = ScaledHead(network.head), nn.Identity()
        return head

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        return normalize(self.tower(prepared), dim=1)

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score_features(self.tower(pixels), None)


class AestheticV1(AestheticV2):
    """LAION's first predictor: one linear map of the embedding of a picture by CLIP ViT-L/14, of length 1.

    Fitted to 5000 ratings from 1 to 10 of simulated pictures (SAC); scores go beyond both ends. The file is
    `sa_0_4_vit_l_14_linear.pth` of LAION's repository on GitHub. Its notebook names open_clip's `ViT-L-14`, which today
    runs the exact GELU that OpenAI's weights were not trained with; here it is the approximate one, as it was then.
    """

    spec = _spec("v1_l14", "MIT", "https://github.com/LAION-AI/aesthetic-predictor")
    origin = Origin("github.com/LAION-AI/aesthetic-predictor", "sa_0_4_vit_l_14_linear.pth", "MIT; CLIP: MIT", 1)
    drift = {"bfloat16": 2.8e-4}

    @classmethod
    def head(cls, width: int) -> nn.Module:
        return nn.Linear(width, 1)


class AestheticV1Base32(AestheticV1):
    """LAION's first predictor on CLIP ViT-B/32."""

    spec = _spec("v1_b32", "MIT", "https://github.com/LAION-AI/aesthetic-predictor")
    origin = Origin("github.com/LAION-AI/aesthetic-predictor", "sa_0_4_vit_b_32_linear.pth", "MIT; CLIP: MIT", 1)
    drift = {"bfloat16": 3.7e-4, "float16": 5.2e-5}
    architecture = "ViT-B-32-quickgelu"


class AestheticV1Base16(AestheticV1):
    """LAION's first predictor on CLIP ViT-B/16."""

    spec = _spec("v1_b16", "MIT", "https://github.com/LAION-AI/aesthetic-predictor")
    origin = Origin("github.com/LAION-AI/aesthetic-predictor", "sa_0_4_vit_b_16_linear.pth", "MIT; CLIP: MIT", 1)
    drift = {"bfloat16": 5.6e-4}
    architecture = "ViT-B-16-quickgelu"
