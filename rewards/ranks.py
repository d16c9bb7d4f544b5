"""The processes that `accelerate launch` or `torchrun` started, and what they say to each other while scoring."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for a slower one."""


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    world: int = 1

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.from_first(None)

    def from_first(self, value: Any) -> Any:
        """What the first process passed, in every process."""
        if self.world == 1:
            return value
        import torch.distributed

        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        torch.distributed.barrier()
        return held[0]


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Joins the processes of the launcher; without one, this process is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=PATIENCE)  # objects and barriers only: no tensor leaves a GPU
    try:
        yield Ranks(int(os.environ["RANK"]), world)
    finally:
        torch.distributed.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: "cuda" stands for another GPU in each process of a machine."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def own_cores() -> int:
    """Cores of this machine that fall to this process, one at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
