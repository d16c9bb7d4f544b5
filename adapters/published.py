"""Weights that others published: where a file lies, how it is read without running it, and how it fits a network."""

from __future__ import annotations

import pickle
import socket
import zipfile
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.hub_refusals import remedy
from rwk.adapters.pickled import refusal
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.truncation import tell_of_cut
from rwk.adapters.tunable_network import TunableNetwork
from rwk.rewards.base import View
from rwk.rewards.errors import RunFailed
from rwk.rewards.networks import Networks
from rwk.rewards.staged import Ready


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint is published."""

    hub: str
    """Repository on the Hugging Face hub."""
    file: str
    """Path in the repository."""
    licence: str
    megabytes: int
    """Size of the file, about; 0 where it is not known."""


def find(
    name: str,
    origin: Origin,
    weights: str | Path | None = None,
    revision: str | None = None,
    *,
    by_hand: str = "copy the file here and name it as {name}@PATH",
) -> Path:
    """The checkpoint file on this machine, downloaded where it has to be.

    Args:
        name: the reward that asks.
        weights: the file, or a folder that holds `origin.file` under that name; None takes the hub's.
        revision: branch, tag or commit of the hub's repository.
        by_hand: what to do on a machine without a network, `{name}` standing for the name.

    Raises:
        ValueError: where `weights` is not there, or is and has a revision beside it, which would pin nothing.
        RunFailed: where the hub cannot be reached and its cache lacks the file.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        file = Path(origin.file).name
        path = path / file if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{name} needs the file {file} of {origin.hub}, got no file at {path}; correct the path.")
        if revision is not None:
            raise ValueError(
                f"{name} takes a revision of {origin.hub} alone, got {revision!r} for {path}; leave it out."
            )
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(origin.hub, origin.file, revision=revision, local_files_only=not hub_is_near()))
    except (OSError, ValueError) as error:
        size = f" (about {origin.megabytes} MB)" if origin.megabytes else ""
        raise RunFailed(
            f"{name} needs {origin.file} of {origin.hub}{size}, which is not in the cache and "
            f"cannot be downloaded ({type(error).__name__}); {remedy(error, revision)}; "
            f"without, {by_hand.format(name=name)}."
        ) from error


def hub_is_near() -> bool:
    """Whether the hub's name can be looked up, or a proxy stands before it; its library tries for half a minute."""
    from huggingface_hub.constants import ENDPOINT

    try:
        return bool(getproxies() or socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None))
    except OSError:
        return False


def beside(weights: str | Path | None, file: str) -> Path | None:
    """The folder of the weights that were named, or that they are, where it holds the file too; else None."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    folder = path if path.is_dir() else path.parent
    return folder if (folder / file).is_file() else None


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by key, on the CPU; no code in the file is run.

    A file of `torch.save` may hold them below `state_dict`, `model` or `module`, as trainers write them.

    Raises:
        ValueError: for a file that is damaged, holds no tensors, or holds a program or pickled objects.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again.") from error
    _refuse_what_is_no_state(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path)) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole torch file ({error!s:.100}); download it again.") from error
    for key in ("state_dict", "model", "module"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{path} must hold tensors by name, got {type(held).__name__}; give the published file.")
    return dict(held)


def _refuse_what_is_no_state(path: Path) -> None:
    """Raises ValueError for TorchScript, and for what is no torch file at all, such as a web page in its stead."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            program = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if program:
            raise ValueError(
                f"{path} is a TorchScript program, which runs when opened, not tensors alone; where you trust it, "
                f"convert it once: torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), 'converted.pt')."
            )
    with path.open("rb") as file:
        start = file.read(20)
    if not start.startswith((b"PK", b"\x80")):
        raise ValueError(f"{path} is not a whole torch file (it starts with {start!r}); download it again.")


def fill(name: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors into a network, every key of one for a key of the other.

    Raises:
        ValueError: as `check_layout` does, or where the checkpoint has different weights for layers that are one and
            the same in the network.
    """
    wanted = network.state_dict()
    check_layout(name, wanted, tensors)
    first: dict[tuple[Any, ...], str] = {}
    for key, value in wanted.items():
        twin = first.setdefault((value.data_ptr(), value.shape, value.device) if value.numel() else (key,), key)
        if twin != key and not torch.equal(tensors[key], tensors[twin]):  # the later one would silently win
            raise ValueError(f"{name} has one layer for {twin} and {key}, got different weights; build them apart.")
    network.load_state_dict(tensors)


def check_layout(name: str, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError that counts and names what is missing, not wanted, or of another shape."""
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "not wanted": sorted(tensors.keys() - wanted.keys()),
        "of another shape": [k for k in sorted(wanted.keys() & tensors.keys()) if wanted[k].shape != tensors[k].shape],
    }
    told = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in faults.items() if keys]
    if told:
        raise ValueError(f"{name} cannot take this checkpoint: of its keys, {'; '.join(told)}; give the published one.")


class PublishedReward(TunableNetwork):
    """A reward with a published checkpoint and one fixed preprocessing.

    A subclass writes `spec`, `origin`, `preprocess`, `build`, `tiny` and `score_prepared`, and `converted` where the
    published keys are not those of the network.
    """

    origin: ClassVar[Origin]
    preprocess: ClassVar[Preprocess]
    casts = True
    context: ClassVar[int | None] = None
    """Tokens of a prompt that the network reads, begin and end among them; None where nothing is cut off."""

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
            weights: the published file, or a folder that holds it; by default it comes from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            networks: those of the rewards that are loaded together with this one, which it shares.
        """
        path = self.found(weights, revision)  # first, as a large network takes its time
        self._take(self.loaded(path, networks or Networks(), device), device)

    @classmethod
    def found(cls, weights: str | Path | None, revision: str | None) -> Path:
        """The published file on this machine, see `find`."""
        return find(cls.spec.name, cls.origin, weights, revision)

    @classmethod
    def loaded(cls, path: Path, networks: Networks, device: str) -> nn.Module:
        """The network of a published file; the one in `networks` where the same was loaded before."""

        def make() -> nn.Module:
            tensors = cls.converted(read(path))  # first, too: a file that is no checkpoint is told at once
            with torch.device("meta"):  # and a wrong one without the time and memory of a network
                check_layout(cls.spec.name, cls.build().state_dict(), tensors)
            fill(cls.spec.name, network := cls.build(), tensors)
            return network

        return networks.get((cls.family(), path.resolve(), device), make)

    @classmethod
    def family(cls) -> Hashable:
        """Equal for the classes that make the same network of one file."""
        return cls

    def _take(self, network: nn.Module, device: str = "cpu") -> Self:
        super().__init__(device=device)
        self.network = network.eval().requires_grad_(False).to(device)
        self._warned = False
        return self

    @classmethod
    def of(cls, network: nn.Module, *, device: str = "cpu", **attributes: Any) -> Self:
        """The reward around a network that `build` could have made, of any size; attributes replace those of the class.

        Unlike the class itself this loads nothing; it is what `tiny` and tests are made with.
        """
        reward = cls.__new__(cls)
        for key, value in attributes.items():
            setattr(reward, key, value)
        return reward._take(network, device)

    @classmethod
    @abstractmethod
    def build(cls) -> nn.Module:
        """The network at its published size, its weights not set yet."""

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published tensors under the keys of the network."""
        return tensors

    @abstractmethod
    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] scores, with gradient, of pixels [B, 3, size, size] as `preprocess` makes them."""

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return self.score_prepared(self.prepared_pixels(pixels), prompts)

    @property
    def preparation(self) -> Hashable:
        return self.preprocess

    def prepare(self, image: Image.Image) -> Ready:
        return self.preprocess.refusal(image) or self.preprocess.image(image)

    def prefer_fast(self) -> None:
        self.preprocess = self.preprocess.fast()  # type: ignore[misc]

    def prefer_stored(self) -> bool:
        self.preprocess = self.preprocess.stored()  # type: ignore[misc]
        return True

    @property
    def view(self) -> View:
        return self.preprocess.view

    def least_size(self, width: int, height: int) -> tuple[int, int] | None:
        return self.preprocess.least_size(width, height)

    def score_taken(self, ready: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score_prepared(self.preprocess.normalised(ready.to(self.device)), prompts)

    def warn_of_cut(self, prompts: Sequence[str], lengths: Sequence[int], unit: str = "tokens") -> None:
        """Warns, once for each reward, of the first prompt that is longer than `context`, which counts `unit`."""
        for prompt, length in zip(prompts, lengths, strict=True):
            if self.context is not None and length > self.context and not self._warned:
                self._warned = True
                tell_of_cut(self.spec.name, prompt, length, self.context, unit)
