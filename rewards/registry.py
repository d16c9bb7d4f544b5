"""Names of rewards, generators and pair judges, and how a name becomes an object. Listing imports no adapter."""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from collections.abc import Collection, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from rwk.rewards.base import Reward
from rwk.rewards.home import home
from rwk.rewards.name_parts import parted, unknown
from rwk.rewards.networks import Networks
from rwk.rewards.precision import Precision

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of names, each with the `module:Class` that it stands for.

    A name is one of, in this order: an address of `rwk serve`, a folder that `save` wrote, a registered name, one kept
    in `$RWK_HOME`, a registered name as `NAME@PATH` with the user's own weights or as `NAME#REVISION`, a model of
    another library as `SCHEME:MODEL`, whose class `of_model` gives and which takes both too, or `module:Class`.
    """

    def __init__(self, kind: str, base: str, table: dict[str, str], schemes: dict[str, str] | None = None) -> None:
        """
        Args:
            kind: "reward", "generator" or "judge"; also of the folder in `$RWK_HOME` and the entry points.
            base: `module:Class` that every entry must be a subclass of.
            table: the built-in names.
            schemes: what stands before a colon, each with the `module:Class` that it stands for.
        """
        self.kind = kind
        self._base = base
        self._table = dict(table)
        self.schemes = dict(schemes or {})
        self._plugins: dict[str, str] | None = None

    def register(self, name: str, target: str) -> None:
        """Adds a name for `module:Class`; raises ValueError where the name stands for something else."""
        known = self._targets().get(name)
        if known not in (None, target):
            raise ValueError(f"{self.kind} name {name!r} is taken by {known}, got {target}; choose another name.")
        self._table[name] = target

    def names(self) -> list[str]:
        """Every registered name, sorted; what is kept in `$RWK_HOME` is in `kept`."""
        return sorted(self._targets())

    def kept(self) -> list[str]:
        """Names of what was trained here and is kept in `$RWK_HOME`."""
        return sorted(path.parent.name for path in home(self.kind + "s").glob("*/config.json"))

    def target(self, name: str) -> type[T]:
        """The class behind a registered name, `SCHEME:MODEL` or `module:Class`; raises ValueError for others."""
        scheme, colon, model = name.partition(":")
        if colon and scheme in self.schemes:
            kind: Any = self.target(self.schemes[scheme])
            return kind.of_model(name, model)  # type: ignore[no-any-return]
        where = self._targets().get(name, name)
        module, colon, attribute = where.partition(":")
        if not colon or not module or not attribute.isidentifier():
            raise ValueError(unknown(self.kind, name, self.names() + self.kept()))
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{self.kind} {name!r} cannot be imported from {where}: {error}") from error
        module, _, attribute = self._base.partition(":")
        base = getattr(importlib.import_module(module), attribute)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ValueError(f"{self.kind} {name!r} must be a subclass of {attribute}, got {found!r} from {where}.")
        return found

    def registered(self, name: str) -> bool:
        """Whether the name, nothing added to it, is registered, or `SCHEME:MODEL` of a scheme that is."""
        scheme, colon, model = name.partition(":")
        return name in self._targets() or bool(colon and model) and scheme in self.schemes

    def parted(self, name: str) -> tuple[str, dict[str, str]]:
        """A name without what a user adds to it, and that as options of its class."""

        def takes(known: str) -> Collection[str] | None:
            return inspect.signature(self.target(known)).parameters if self.registered(known) else None

        return parted(name, takes)

    def knows(self, name: str) -> bool:
        """Whether the name is registered, kept in `$RWK_HOME`, or a saved folder; not so for `module:Class`."""
        return name in self._targets() or self._saved(name) is not None

    def kind_of(self, name: str) -> type[T]:
        """The class that `load` would build for a name, without its weights; raises ValueError as `load` does."""
        if self.kind == "reward" and name.startswith(("http://", "https://")):
            return self.target("rwk.rewards.remote:RemoteReward")
        folder = self.folder(name)
        return self.target(self._saved_by(folder) if folder else self.parted(name)[0])

    def load(self, name: str, **options: Any) -> T:
        """The object that a name stands for.

        Args:
            name: see the class.
            options: `device` and whatever else the class takes; `networks` is dropped where it takes none.

        Raises:
            ValueError: for an unknown name or a damaged folder, in one sentence.
        """
        if self.kind == "reward" and name.startswith(("http://", "https://")):
            name, options = "rwk.rewards.remote:RemoteReward", {"url": name, **options}
        folder = self.folder(name)
        if folder is not None:
            options.pop("networks", None)
            saved: Any = self.target(self._saved_by(folder))
            return saved.from_folder(folder, **options)  # type: ignore[no-any-return]
        known, own = self.parted(name)
        kind = self.target(known)
        takes = inspect.signature(kind).parameters
        for option, given in own.items():
            if option not in takes:
                what = {"weights": "weights of one's own", "revision": "revision of a repository"}[option]
                raise ValueError(f"{self.kind} {known!r} takes no {what}, got {given!r}; leave it out.")
        if "networks" not in takes:
            options.pop("networks", None)
        return kind(**own, **options)

    def folder(self, name: str) -> Path | None:
        """The folder that a name stands for, given or in `$RWK_HOME`; None for a registered name, and any other."""
        return None if name in self._targets() else self._saved(name)

    def _saved(self, name: str) -> Path | None:
        for folder in (Path(name), home(self.kind + "s", name)):
            try:
                if (folder / "config.json").is_file():
                    return folder
            except OSError:  # a name too long for a file: an expression
                continue
        return None

    def _saved_by(self, folder: Path) -> str:
        """The registered name of what wrote a folder."""
        try:
            config = json.loads((folder / "config.json").read_text())
            name: str = config[f"rwk_{self.kind}"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} is not a saved {self.kind}: its config.json holds no readable rwk_{self.kind} ({error}); "
                f"give a folder that rwk wrote."
            ) from error
        if name not in self._targets():  # never `module:Class` from a file: a downloaded folder must not choose code
            raise ValueError(f"{folder} was saved by {self.kind} {name!r}, which is not installed here.")
        return name

    def _targets(self) -> dict[str, str]:
        if self._plugins is None:
            found = entry_points(group=f"rwk.{self.kind}s")
            self._plugins = {point.name: point.value for point in found}
            for name in sorted(self._plugins.keys() & self._table.keys()):
                ignored = f"{self.kind} {name!r} of a plug-in is rwk's own name; {self._plugins[name]} is ignored."
                warnings.warn(ignored, stacklevel=4)
        return self._plugins | self._table


REWARDS: Registry[Reward] = Registry(
    "reward",
    "rwk.rewards.base:Reward",
    {
        "aesthetic.v1_b16": "rwk.adapters.aesthetic:AestheticV1Base16",
        "aesthetic.v1_b32": "rwk.adapters.aesthetic:AestheticV1Base32",
        "aesthetic.v1_l14": "rwk.adapters.aesthetic:AestheticV1",
        "aesthetic.v2": "rwk.adapters.aesthetic:AestheticV2",
        "blip_vqa.compbench": "rwk.adapters.blip_vqa:BlipVqa",
        "clipscore.b32": "rwk.adapters.clipscore:ClipScore",
        "clipscore.b32_cosine": "rwk.adapters.clipscore:ClipCosine",
        "clipscore.b32_noprefix": "rwk.adapters.clipscore:ClipScoreNoPrefix",
        "clipscore.h14_cosine": "rwk.adapters.clipscore:ClipCosineHuge",
        "clipscore.l14": "rwk.adapters.clipscore:ClipScoreLarge",
        "clipscore.l14_cosine": "rwk.adapters.clipscore:ClipCosineLarge",
        "clipscore.l14_noprefix": "rwk.adapters.clipscore:ClipScoreLargeNoPrefix",
        "colorfulness": "rwk.adapters.pixels:Colorfulness",
        "compbench.numeracy": "rwk.adapters.compbench:CompbenchNumeracy",
        "compbench.spatial": "rwk.adapters.compbench:CompbenchSpatial",
        "compbench.spatial_3d": "rwk.adapters.compbench:CompbenchSpatial3d",
        "compressibility.jpeg": "rwk.adapters.jpeg:Compressibility",
        "contrast": "rwk.adapters.pixels:Contrast",
        "cyclereward.combo": "rwk.adapters.cyclereward:CycleCombo",
        "cyclereward.i2t": "rwk.adapters.cyclereward:CycleI2T",
        "cyclereward.t2i": "rwk.adapters.cyclereward:CycleT2I",
        "dino.similarity": "rwk.adapters.dino:DinoSimilarity",
        "dino.similarity_authors": "rwk.adapters.dino:DinoAuthors",
        "dual_encoder": "rwk.adapters.dual_encoder:DualEncoder",
        "evalmuse.element": "rwk.adapters.evalmuse:FgaElement",
        "evalmuse.fga_blip2": "rwk.adapters.evalmuse:FgaBlip2",
        "evalmuse.fga_blip2_whole": "rwk.adapters.evalmuse:FgaBlip2Whole",
        "exposure": "rwk.adapters.pixels:Exposure",
        "geneval.flow_grpo": "rwk.adapters.geneval:GenevalFlowGrpo",
        "geneval.soft": "rwk.adapters.geneval:GenevalSoft",
        "geneval.strict": "rwk.adapters.geneval:Geneval",
        "git_vqa.t2i_r1": "rwk.adapters.git_vqa:GitVqa",
        "grounding_dino.t2i_r1": "rwk.adapters.grounding_dino:GroundingDino",
        "grounding_dino.t2i_r1_published": "rwk.adapters.grounding_dino:GroundingDinoPublished",
        "hpsv2.v20": "rwk.adapters.hpsv2:Hpsv2",
        "hpsv2.v20_legacy": "rwk.adapters.hpsv2:Hpsv2Legacy",
        "hpsv2.v21": "rwk.adapters.hpsv2:Hpsv21",
        "hpsv2.v21_legacy": "rwk.adapters.hpsv2:Hpsv21Legacy",
        "hpsv3.v3": "rwk.adapters.hpsv3:HpsV3",
        "imagereward.v1": "rwk.adapters.imagereward:ImageReward",
        "incompressibility.jpeg": "rwk.adapters.jpeg:Incompressibility",
        "judge.aesthetics": "rwk.adapters.judge:Aesthetics",
        "judge.orm": "rwk.adapters.judge_published:OrmQuestion",
        "judge.parm_clarity": "rwk.adapters.judge_published:ParmClarity",
        "judge.parm_potential": "rwk.adapters.judge_published:ParmPotential",
        "judge.quality": "rwk.adapters.judge:Levels",
        "judge.question": "rwk.adapters.judge:Answer",
        "judge.reasongen": "rwk.adapters.judge_published:ReasonGen",
        "judge.yes": "rwk.adapters.judge:Yes",
        "judge.yes_no": "rwk.adapters.judge:YesNo",
        "mps.overall": "rwk.adapters.mps:Mps",
        "mps.overall_t001": "rwk.adapters.mps:MpsLoose",
        "noise": "rwk.adapters.pixels:Noise",
        "ocr.got": "rwk.adapters.ocr:GotOcr",
        "orm.t2i_r1": "rwk.adapters.orm:Orm",
        "pickscore.v1": "rwk.adapters.pickscore:PickScore",
        "shapes.clip": "rwk.adapters.shapes_clip:ShapesClip",
        "shapes.long_only": "rwk.adapters.shapes_proxies:LongOnly",
        "shapes.no_counts": "rwk.adapters.shapes_proxies:NoCounts",
        "shapes.noisy": "rwk.adapters.shapes_proxies:Noisy",
        "shapes.verifier": "rwk.adapters.shapes_verifier:Verifier",
        "sharpness": "rwk.adapters.pixels:Sharpness",
        "siglip.b16_224": "rwk.adapters.siglip:Siglip",
        "siglip.so400m_14_384": "rwk.adapters.siglip:SiglipLarge",
        "siglip2.b16_224": "rwk.adapters.siglip:Siglip2",
        "siglip2.b16_naflex": "rwk.adapters.siglip_naflex:Naflex",
        "siglip2.so400m_14_384": "rwk.adapters.siglip:Siglip2Large",
        "siglip2.so400m_16_naflex": "rwk.adapters.siglip_naflex:NaflexLarge",
        "timm_head": "rwk.adapters.timm_head:TimmHead",
        "tuned": "rwk.rewards.tuned:Tuned",
        "unifiedreward.alignment": "rwk.adapters.unified_reward:Alignment",
        "unifiedreward.coherence": "rwk.adapters.unified_reward:Coherence",
        "unifiedreward.pointwise": "rwk.adapters.unified_reward:UnifiedReward",
        "unifiedreward.style": "rwk.adapters.unified_reward:Style",
        "vqascore.flant5": "rwk.adapters.vqascore:FlanT5",
        "vqascore.flant5_xl": "rwk.adapters.vqascore:FlanT5Xl",
        "vqascore.llava_ov": "rwk.adapters.judge_published:VqaScoreLlavaOv",
        "vqascore.vlm": "rwk.adapters.judge:VqaScore",
    },
    {
        "open_clip": "rwk.adapters.open_clip_models:OpenClipCosine",
        "open_clip.clipscore": "rwk.adapters.open_clip_models:OpenClipScore",
        "open_clip.noprefix": "rwk.adapters.open_clip_models:OpenClipScoreNoPrefix",
        "transformers": "rwk.adapters.transformers_clip:TransformersCosine",
        "transformers.clipscore": "rwk.adapters.transformers_clip:TransformersScore",
        "transformers.noprefix": "rwk.adapters.transformers_clip:TransformersScoreNoPrefix",
    },
)

register = REWARDS.register
names = REWARDS.names


def load(name: str, **options: Any) -> Reward:
    """The reward of that name: a registered or kept one, a folder, `module:Class`, or a combination of them.

    >>> load("colorfulness").spec.unit
    'M3, in 8-bit steps'
    """
    from rwk.rewards.expression import is_expression, parse

    if is_expression(name) and not REWARDS.knows(name):
        return parse(name, lambda part: REWARDS.load(part, **options))
    return REWARDS.load(name, **options)


def load_all(names: Iterable[str], *, precision: Precision = "published", **options: Any) -> dict[str, Reward]:
    """The rewards of these names, which take what `load` takes, to score with together.

    A name that occurs several times, in expressions too, is loaded once, and rewards on the same weights hold one
    network between them.

    Args:
        names: of rewards, and expressions.
        precision: what weights are loaded in where they are published in half precision; all others are float32.
        options: as `load` takes them.
    """
    from rwk.rewards.expression import is_expression, parse

    networks = Networks()

    @cache
    def part(name: str) -> Reward:
        typed = precision != "published" and "dtype" in inspect.signature(REWARDS.kind_of(name)).parameters
        return REWARDS.load(name, networks=networks, **({"dtype": precision} if typed else {}), **options)

    return {
        name: parse(name, part) if is_expression(name) and not REWARDS.knows(name) else part(name)
        for name in dict.fromkeys(names)
    }
