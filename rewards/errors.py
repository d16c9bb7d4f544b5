"""The failure of a run that was called rightly. A wrong call is a ValueError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunFailed(RuntimeError):
    """Says in one sentence why a run ended without its result; the command line ends with exit code 1."""


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Raises ValueError, in one sentence, where a folder turns out not to hold the whole of what is read from it.

    Args:
        what: it should hold, such as "shapes.llama".
    """
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    try:
        yield
    except (RunFailed, OutOfMemoryError):
        raise
    except (KeyError, TypeError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        if str(error).startswith(f"{folder} does not hold"):
            raise  # told by what reads a part of it
        told = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{folder} does not hold a whole {what}: {told}") from error
