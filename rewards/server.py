"""Rewards behind HTTP: one thread a connection reads and decodes, one thread a reward scores for all of them."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from socketserver import ThreadingTCPServer
from typing import Any

from rwk.rewards.base import Reward
from rwk.rewards.batching import Batcher
from rwk.rewards.connection import Connection
from rwk.rewards.images import guarded
from rwk.rewards.score_request import Limits, Refused

GRACE = 30.0
"""Seconds that requests in progress are given when the server ends."""


class Server(ThreadingTCPServer):
    """Listens from the beginning, answers from `start` to `close`; what it answers is in `rewards.openapi`."""

    allow_reuse_address = True
    daemon_threads = True  # an idle connection must not keep the process; `close` waits for requests by itself
    request_queue_size = 128

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_batch: int = 16,
        max_wait: float = 0.005,
        limits: Limits | None = None,
    ) -> None:
        """
        Args:
            rewards: by the names that they are asked for.
            host: address to listen on; the default is reached from this machine alone.
            port: 0 for any that is free.
            max_batch: images that go through a reward at once.
            max_wait: seconds that an image waits for others to fill its batch.
            limits: what a request may hold.

        Raises:
            ValueError: when the address cannot be listened on.
        """
        self.limits = limits or Limits()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Connection)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(f"{host} port {port} cannot be listened on: {why}; choose another.") from error
        self.batchers = {name: Batcher(it, max_batch=max_batch, max_wait=max_wait) for name, it in rewards.items()}
        self.requests = self.images = 0
        self._free = threading.BoundedSemaphore(self.limits.connections)
        self._state = threading.Condition()
        self._active = self._held = 0
        self._closing = False

    @property
    def url(self) -> str:
        """Where the server is reached, without a slash at the end."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if self.address_family == socket.AF_INET6 else f"http://{host!s}:{port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Answers while inside; Pillow's warnings of bombs are errors there, and others of its are not shown."""
        with guarded():
            self.start()
            try:
                yield self
            finally:
                self.close()

    def start(self) -> None:
        """Answers from now on, in threads."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Frees the port, waits for the requests in progress, and ends the threads that score."""
        self.shutdown()
        self.server_close()
        with self._state:
            self._closing = True
            done = self._state.wait_for(lambda: not self._active, GRACE)
        if done:
            for batcher in self.batchers.values():
                batcher.close()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Counts a request in progress; raises Refused 503 when the server ends."""
        with self._state:
            if self._closing:
                raise Refused(503, "the server is shutting down; try again later.")
            self._active += 1
        try:
            yield
        finally:
            with self._state:
                self._active -= 1
                self._state.notify_all()

    @contextlib.contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Counts so many bytes as held; raises Refused 503 where all requests would hold too many."""
        with self._state:
            if self._held + amount > self.limits.memory:
                raise Refused(503, f"the server holds all it can of other requests, got {amount:,} bytes; try again.")
            self._held += amount
        try:
            yield
        finally:
            with self._state:
                self._held -= amount

    def count(self, images: int) -> None:
        """Notes a request that was answered."""
        with self._state:
            self.requests += 1
            self.images += images

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away, and what happened of all else."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
