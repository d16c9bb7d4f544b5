"""A published reward or judge after training, kept as the name of its base and what training moved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.rewards.base import PixelReward, Reward, RewardSpec, Scores
from rwk.rewards.errors import RunFailed, reading
from rwk.rewards.layers import add_lora
from rwk.rewards.registry import REWARDS
from rwk.rewards.trainable import Trainable
from rwk.rewards.tunable import HeadKind, Tunable

UNIT = "log-odds of being preferred, in a difference"


class Network(nn.Module):
    """The base's network and the head."""

    def __init__(self, base: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.head = head


class Tuned(Trainable, PixelReward):
    """A `Tunable` reward and a head, trained together; scores are log-odds in a difference, whatever the base's unit.

    A saved folder holds the name of the base and, in model.safetensors, every number that training moved, low-rank
    changes beside the weights that they change. So it is small after `probe` and `lora`, scores as training did to the
    last bit, and needs the base: a name such as `pickscore.v1` is fetched wherever the folder goes, a path must lead
    to the same weights. What training left alone is known by a hash, and other weights are refused.
    """

    spec = RewardSpec("tuned", UNIT, -math.inf, math.inf, "that of the base", "rwk.rewards.tuned", differentiable=True)
    registered = "tuned"
    keeps_lora = True
    tiny_base: ClassVar[str] = "pickscore.v1"
    tolerance = 0.5
    """In log-odds; of the base's own way from Pillow's resize to torch's."""

    def __init__(
        self,
        base: Reward | None = None,
        name: str = "",
        *,
        head: HeadKind = "own",
        probe: bool = False,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            base: the reward, which gives its network away: it scores no more by itself.
            name: what `registry.load` makes that reward of.
            head: which head, see `Tunable.take_head`.
            probe: whether the head is one that can be trained alone.
            seed: of a new head's random weights.
            device: where the network runs; the base is there already.
        """
        super().__init__(device=device)
        if not isinstance(base, Reward) or not isinstance(base, Tunable):
            raise ValueError(f"{self.registered} is a trained reward and has no weights of its own; name its folder.")
        self.base, self.base_name, self.head_kind, self.probes = cast(Any, base), name, head, probe
        self.lora_rank, self.widened, self.moved = 0, False, frozenset[str]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = base.take_head(head, probe=probe)
        self.module = Network(base.trunk(), made.to(self.device)).eval().requires_grad_(False)
        self.spec = dataclasses.replace(base.spec, unit=UNIT, low=-math.inf, high=math.inf)

    @classmethod
    def over(cls, base: Reward, name: str, **options: Any) -> Self:
        """The reward over that base, which a path names the same in any folder."""
        return cls(base, absolute(name), **options)

    @classmethod
    def tiny(cls) -> Self:
        made = cls(REWARDS.target(cls.tiny_base).tiny(), cls.tiny_base)
        made.spec = dataclasses.replace(made.spec, name=cls.registered)
        return made

    @property
    def preprocess(self) -> Any:
        """How images become the network's input, where the base states it."""
        return getattr(self.base, "preprocess", None)

    @property
    def example_prompts(self) -> Sequence[str]:  # type: ignore[override]
        return self.base.example_prompts  # type: ignore[no-any-return]

    def prepare(self, image: Image.Image) -> Tensor | str:
        return self.base.prepare(image)  # type: ignore[no-any-return]

    def prepared(self, ready: Sequence[Tensor]) -> Any:
        return self.base.prepared(ready)

    def features(self, prepared: Any, prompts: Sequence[str]) -> Tensor:
        return self.base.features(prepared, prompts)  # type: ignore[no-any-return]

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        prompts = prompts or [""] * len(pixels)
        return self.head(self.features(self.base.prepared_pixels(pixels), prompts))

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        prompts = prompts or [""] * len(images)
        notes, taken, ready = [self.base.refusal(prompt) for prompt in prompts], [], []
        for i, image in enumerate(images):
            found = notes[i] or self.prepare(image)
            if isinstance(found, str):
                notes[i] = found
            else:
                taken.append(i)
                ready.append(found)
        values = torch.full([len(images)], math.nan)
        if taken:
            features = self.features(self.prepared(ready), [prompts[i] for i in taken])
            values[taken] = self.head(features).float().cpu()
        return Scores(values, notes)

    def refuse(self, prompts: Iterable[str]) -> None:
        """Raises ValueError for the first prompt that the base gives no score."""
        for prompt in prompts:
            if note := self.base.refusal(prompt):
                raise ValueError(f"{self.base_name} gives {prompt[:60]!r} no score: {note}; remove its rows.")

    # ---------------------------------------------------------------------------------------------- what training does

    def lower(self, rank: int, seed: int) -> Any:
        """Adds low-rank changes, or goes on with those of an earlier training; gives peft's model.

        Raises:
            ValueError: where there are some of another rank.
        """
        if self.lora_rank not in (0, rank):
            raise ValueError(
                f"{self.base_name} was trained with --lora-rank {self.lora_rank} before, got {rank}; give the same, "
                f"or take --mode full, which merges those changes."
            )
        if self.lora_rank == 0:
            self.lora = add_lora(self.module, rank=rank, seed=seed)
            self.lora_rank = rank
            self.moved = frozenset(key for key in self.module.state_dict() if _plain(key) in self.moved)
        return self.lora

    def widen(self) -> None:
        """Merges low-rank changes, and computes in float32 from then on, so that small steps are not rounded away."""
        if self.lora_rank:
            changed = {name.partition(".lora_")[0] + ".weight" for name in self.moved if ".lora_" in name}
            self.lora.merge_and_unload()
            self.lora_rank = 0
            self.moved = frozenset(_plain(name) for name in self.moved if ".lora_" not in name) | changed
        self.module.float()
        self.widened = True

    def _moved(self) -> frozenset[str]:
        """Names of all that was or is trained, of the head, and in mode full of buffers such as running means."""
        trained = {name for name, p in self.module.named_parameters() if p.requires_grad or name.startswith("head.")}
        return self.moved | trained | {name for name, _ in self.module.named_buffers() if self.widened}

    # ------------------------------------------------------------------------------------------------ keeping, loading

    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors, from which `registry.load(folder)` builds the same reward."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        moved, state = self._moved(), self.module.state_dict()
        save_file(
            {key: state[key].detach().cpu().clone().contiguous() for key in sorted(moved & state.keys())},
            folder / "model.safetensors",
        )
        config = {
            "rwk_reward": self.registered,
            "spec": {key: getattr(self.spec, key) for key in ("name", "unit", "licence", "source")},
            "base": self.base_name,
            "base_sha256": untouched(state, moved),
            "head": self.head_kind,
            "probe": self.probes,
            "lora_rank": self.lora_rank,
            "float32": self.widened,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_folder(cls, folder: Path, *, base: str | None = None, device: str = "cpu") -> Self:
        """The reward that `save` wrote.

        Args:
            folder: where it is.
            base: what the base is called here, if not as it was then: `NAME@PATH` for another path.
            device: where the network runs.

        Raises:
            ValueError: for a damaged folder, or a base of other weights.
            RunFailed: where the base cannot be had.
        """
        from safetensors.torch import load_file

        with reading(folder, f"{cls.registered} reward"):
            config = json.loads((folder / "config.json").read_text())
            name = base or config["base"]
            tensors = load_file(folder / "model.safetensors")
            settings = {key: config[key] for key in ("head", "probe")}
            spec, rank, wide, sha = (config[key] for key in ("spec", "lora_rank", "float32", "base_sha256"))
        try:
            network = REWARDS.load(name, device=device)
        except (ValueError, RunFailed) as error:
            raise type(error)(f"{folder} needs its base {name}, which is named in its config.json: {error}") from error
        reward = cls(network, name, device=device, **settings)
        reward.spec = dataclasses.replace(reward.spec, **spec)
        if wide:
            reward.widen()
        if rank:
            reward.lower(rank, seed=0)
        reward._take(tensors, sha, folder)
        return reward

    def _take(self, tensors: Mapping[str, Tensor], sha: str, folder: Path) -> None:
        state = self.module.state_dict()
        strange = [key for key in tensors if key not in state or state[key].shape != tensors[key].shape]
        if strange or untouched(state, tensors.keys()) != sha:
            what = f"tensors that it lacks ({', '.join(strange[:3])})" if strange else "other weights"
            raise ValueError(f"{folder} was trained on another {self.base_name}, got {what}; give the one it names.")
        for key, value in tensors.items():
            state[key].copy_(value)
        self.moved = frozenset(tensors)
        self.module.requires_grad_(False)


def absolute(name: str) -> str:
    """The name of a base that means the same in any folder: the path in `NAME@PATH` or `SCHEME:PATH` from the root.

    What is no path here is a repository of the hub, which means the same everywhere.
    """
    known, at, path = name.partition("@")
    if at:
        place = Path(path).expanduser()
        return f"{known}@{place.resolve()}" if place.exists() else name
    scheme, colon, path = name.partition(":")
    here = colon and scheme in REWARDS.schemes and Path(path).expanduser().is_dir()
    return f"{scheme}:{Path(path).expanduser().resolve()}" if here else name


def untouched(state: Mapping[str, Tensor], moved: Iterable[str]) -> str:
    """SHA-256 over name, type, shape and the first 1024 numbers of every tensor that training left alone."""
    total = hashlib.sha256()
    for name in sorted(state.keys() - set(moved)):
        tensor = state[name].detach()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        start = tensor.reshape(-1)[:1024].cpu().contiguous()
        total.update(start.view(torch.uint8).numpy().data if start.ndim else b"")
    return total.hexdigest()


def _plain(key: str) -> str:
    """The name of a tensor as it was before peft put it below a layer with low-rank changes."""
    return key.replace(".base_layer.", ".")
