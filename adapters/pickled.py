"""Files of pickled objects: what somebody has to do who trusts one and wants the tensors in it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_STEPS = (
    "import torch",
    "held = torch.load({path!r}, 'cpu', weights_only=False)",
    "keys = ('state_dict', 'model', 'module')",
    "held = next((held[k] for k in keys if k in held), held) if isinstance(held, dict) else held",
    "held = held.state_dict() if hasattr(held, 'state_dict') else held",
    "torch.save({{k: v for k, v in held.items() if torch.is_tensor(v)}}, {made!r})",
)


def refusal(path: Path) -> str:
    """Why a file of pickled objects is not opened, with the command that converts it and where that has to be run.

    The command takes a whole module, and a dict that holds one or a state among other things. Nothing in the file is
    run to find out what it needs.
    """
    path = path.resolve()
    steps = "; ".join(_STEPS).format(path=str(path), made=str(path.with_name("converted.pt")))
    missing = not_here(path)
    where = f", in a checkout of its authors' code, since it needs {', '.join(missing)}" if missing else ""
    return (
        f"{path} holds pickled objects, which could run code when opened, not tensors alone; where you trust it, "
        f'convert it once{where}: python -c "{steps}".'
    )


def not_here(path: Path) -> list[str]:
    """The modules that objects in a file are of and that cannot be imported here, sorted; [] where none can be told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of torch 1.5 or older, which has no list; the command itself then says what it lacks
        return []
    modules = {name.rpartition(".")[0] for name in names}
    return sorted(module for module in modules if not _found(module))


def _found(module: str) -> bool:
    """Whether the package that a module lies in can be imported; it is not."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
