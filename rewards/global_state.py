"""The state of a process that no reward or generator may touch or depend on: random generators and torch's switches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the global generators of torch, numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def global_state() -> dict[str, object]:
    """The state by name, in a form that compares with `==`."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "numpy generator": (kind, np.asarray(keys).tobytes(), *rest),
        "python generator": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "thread count": torch.get_num_threads(),
    }


def unlikely_state(grad: bool) -> dict[str, object]:
    """Sets a state that nobody would set, so that a later change to any other is seen; returns it."""
    seed_everything(715_225_739)
    torch.set_grad_enabled(grad)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(3)
    return global_state()


@contextmanager
def restored() -> Iterator[None]:
    """Puts the state back at its end."""
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
