"""Tensors out of a TorchScript file, none of whose code is compiled or run."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.jit.save` by key, parameters and buffers alike, on the CPU.

    Its tree of modules is read as data: what it names is looked up in a table of seven number formats, two ways to
    make a tensor or a list, and one empty class that stands for all modules.

    Raises:
        ValueError: for a file that is damaged, is no TorchScript, or names anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            whole = _Reader(archive, root).load()
    except (zipfile.BadZipFile, StopIteration, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a whole TorchScript file ({error!r:.100}); download it again.") from error
    tensors: dict[str, Tensor] = {}
    _collect(whole, "", tensors)
    return tensors


class _Part:
    """A module of the program; what it is does not matter, but what it holds."""

    def __setstate__(self, state: Any) -> None:
        self.held = state


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(root))
        self.archive, self.folder = archive, root.removesuffix(".pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Part
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool")},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, flat."""
        _, dtype, key, _, count = pid
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self.archive.read(f"{self.folder}/{key}")), dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _collect(held: Any, path: str, tensors: dict[str, Tensor]) -> None:
    if isinstance(held, Tensor):
        tensors[path] = held
    elif isinstance(held, _Part) and isinstance(held.held, dict):
        for name, value in held.held.items():
            _collect(value, f"{path}.{name}" if path else name, tensors)
