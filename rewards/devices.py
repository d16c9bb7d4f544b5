"""Which devices there are to run networks on."""

from __future__ import annotations


def check_device(name: str) -> None:
    """Raises ValueError, in one sentence about --device, where torch knows no such device or sees none here."""
    import torch

    there = devices()
    try:
        asked = torch.device(name)
    except RuntimeError:  # torch lists everything that it was ever made for
        asked = None
    if asked is not None and f"{asked.type}:{asked.index or 0}" in there:
        return
    others = ", ".join(there[1:])
    advice = f"cpu or one of {others}" if others else "cpu"
    wanted = "" if others else "; for a GPU, install its driver and a torch that is made for it"
    raise ValueError(
        f"--device must be {advice}, as torch {torch.__version__} sees nothing else here, got {name!r}{wanted}."
    )


def devices() -> list[str]:
    """The devices of this machine as torch counts them, such as "cpu:0", "cuda:0" and "cuda:1"."""
    import torch

    found = ["cpu:0"]
    if torch.accelerator.is_available() and (kind := torch.accelerator.current_accelerator()) is not None:
        found += [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())]
    return found
