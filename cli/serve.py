"""`rwk serve`: rewards that other programs ask over HTTP."""

from __future__ import annotations

import ipaddress
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import click

from rwk.cli.console import note, progress
from rwk.cli.options import Common, options


@dataclass(frozen=True)
class Serving:
    """What `rwk serve` is told."""

    rewards: tuple[str, ...] = field(metadata={"argument": True, "metavar": "NAME..."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for every machine."})
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 for any that is free."})
    max_batch: int = field(default=16, metadata={"help": "Images that go through a reward at once."})
    max_wait_ms: float = field(
        default=5.0, metadata={"help": "Milliseconds that an image waits for others to fill its batch."}
    )
    max_megabytes: int = field(default=32, metadata={"help": "Largest request, in megabytes of 2**20 bytes."})

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"--max-batch must be at least 1, got {self.max_batch}.")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise ValueError(f"--max-wait-ms must lie in 0..10000, got {self.max_wait_ms:g}.")
        if not 1 <= self.max_megabytes <= 512:
            raise ValueError(f"--max-megabytes must lie in 1..512, got {self.max_megabytes}.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must lie in 0..65535, got {self.port}.")


@click.command()
@options(Serving)
def command(config: Serving, common: Common) -> dict[str, Any]:
    """Serves rewards over HTTP until it is interrupted.

    NAME is anything that `rwk score --reward` takes. Images of different clients are scored in one batch. Addresses are
    /score, /rewards, /health and /openapi.json; there, `http://HOST:PORT/NAME` is the name of a reward for every other
    command. There is no password: whoever reaches the port can score.
    """
    with progress("loading"):
        import torch

        from rwk.rewards.registry import load
        from rwk.rewards.score_request import Limits
        from rwk.rewards.server import Server

        torch.manual_seed(common.seed)
        rewards = {name: load(name, device=common.device) for name in dict.fromkeys(config.rewards)}
        server = Server(
            rewards,
            host=config.host,
            port=config.port,
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000,
            limits=Limits(body=config.max_megabytes * 2**20),
        )
    stop = _told_to_stop()
    with server.running():
        note(f"serving {', '.join(rewards)} on {server.url}; Ctrl-C ends it.")
        if not _loopback(config.host):
            note(f"{config.host} is open to other machines, and there is no password.")
        while not stop.wait(1):  # with a limit, or Windows would not see Ctrl-C
            pass
        note("finishing the requests in progress.")
    note(f"answered {server.requests} requests with {server.images} images.")
    return {
        "url": server.url,
        "rewards": list(rewards),
        "requests": server.requests,
        "images": server.images,
        "device": common.device,
        "seed": common.seed,
    }


def _told_to_stop() -> threading.Event:
    """Is set by SIGINT or SIGTERM; the second of them ends the process at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(*_: Any) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, end)
    return stop


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
