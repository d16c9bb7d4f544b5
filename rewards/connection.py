"""One connection to a server of scores: a request read, checked and answered, as often as the client likes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from rwk.rewards.base import RewardSpec, check_prompts
from rwk.rewards.batching import Batcher
from rwk.rewards.errors import RunFailed
from rwk.rewards.images import Picture
from rwk.rewards.openapi import openapi
from rwk.rewards.score_request import Refused, decode, open_images, parse

if TYPE_CHECKING:
    from rwk.rewards.server import Server

PATHS = {"/health": "GET", "/rewards": "GET", "/openapi.json": "GET", "/score": "POST"}
"""Addresses, and the method that each takes."""
PUBLIC_LIMITS = ("body", "images", "pixels", "prompt")
"""Those of `Limits` that one request is held to."""


class Connection(BaseHTTPRequestHandler):
    """Runs in a thread of its own, in which images are decoded too."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds without a byte
    disable_nagle_algorithm = True
    _unread = 0  # bytes of the body that are still to come

    def do_GET(self) -> None:
        """Answers a request of any method."""
        with contextlib.ExitStack() as progress:
            try:
                progress.enter_context(self.server.working())
                self._unread = self._length()
                status, document = 200, self._document()
            except Refused as refused:
                status, document = refused.status, {"error": str(refused)}
            except RunFailed as failed:
                status, document = 500, {"error": str(failed)}
            self._reply(status, document)
        if self._unread:
            self._linger()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def _length(self) -> int:
        """Bytes of the body; where they are not known the connection cannot go on."""
        stated = self.headers.get_all("Content-Length", ["0"])
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(411, "a request must state its Content-Length, got a Transfer-Encoding.")
        if len(stated) > 1 or not (stated[0].isascii() and stated[0].isdigit() and len(stated[0]) < 19):
            self.close_connection = True
            raise Refused(400, f"Content-Length must be one number, got {', '.join(stated)[:40]!r}.")
        return int(stated[0])

    def _document(self) -> dict[str, Any]:
        """The answer to a request that is in order."""
        path = self.path.partition("?")[0]
        if path not in PATHS:
            raise Refused(404, f"there is nothing at {path[:80]!r}; there are {', '.join(PATHS)}.")
        if self.command != PATHS[path]:
            raise Refused(405, f"{path} takes {PATHS[path]}, got {self.command}.")
        if path == "/score":
            return self._scores()
        served, limits = self.server.batchers, self.server.limits
        if path == "/health":
            return {"status": "ok", "waiting": {name: batcher.waiting for name, batcher in served.items()}}
        if path == "/openapi.json":
            return openapi(list(served), limits)
        specs = [spec_document(name, batcher.reward.spec) for name, batcher in served.items()]
        return {"rewards": specs, "limits": {name: getattr(limits, name) for name in PUBLIC_LIMITS}}

    def _scores(self) -> dict[str, Any]:
        limits, length = self.server.limits, self._unread
        if "Content-Length" not in self.headers:
            raise Refused(411, "a request for scores must state its Content-Length, got none.")
        if length > limits.body:
            raise Refused(413, f"a request may have {limits.body:,} bytes, got {length:,}; send several requests.")
        with contextlib.ExitStack() as held:
            held.enter_context(self.server.holding(3 * length))  # the body, its text, the files
            request = parse(self._body(length), self.headers.get("Content-Type", ""), limits)
            name, batcher = self._batcher(request.reward)
            try:
                check_prompts(batcher.reward.spec, len(request.files), len(request.prompts))
            except ValueError as error:
                raise Refused(400, str(error)) from error
            opened, pixels = open_images(request.files, limits)
            held.enter_context(self.server.holding(4 * pixels))
            values, notes = _scored(batcher, [decode(image) for image in opened], request.prompts)
        self.server.count(len(values))
        return {"reward": name, "values": values, "notes": notes}

    def _batcher(self, name: str | None) -> tuple[str, Batcher]:
        served = self.server.batchers
        if name is None and len(served) == 1:
            return next(iter(served.items()))
        if name is None:
            raise Refused(400, f"reward must be one of {', '.join(served)}, got none.")
        if name not in served:
            raise Refused(404, f"no reward {name[:200]!r} is served here; there are {', '.join(served)}.")
        return name, served[name]

    def _body(self, length: int) -> bytes:
        body = bytearray()
        deadline = time.monotonic() + self.server.limits.seconds
        while len(body) < length:
            try:
                chunk = self.rfile.read1(min(length - len(body), 2**20))
            except TimeoutError:
                chunk = b""
            if not chunk or time.monotonic() > deadline:
                raise Refused(408, f"a body of {length:,} bytes was announced, got {len(body):,} in time.")
            body += chunk
            self._unread -= len(chunk)
        return bytes(body)

    def _reply(self, status: int, document: dict[str, Any]) -> None:
        """Sends head and body in one piece; a connection of which not all was read ends with it."""
        text = json.dumps(document, allow_nan=False).encode()
        self.close_connection = self.close_connection or bool(self._unread)
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(text)}",
        ]
        head += ["Retry-After: 1"] * (status == 503) + ["Connection: close"] * self.close_connection
        head += [f"Allow: {', '.join(dict.fromkeys(PATHS.values()))}"] * (status == 405)
        self.wfile.write("\r\n".join([*head, "", ""]).encode() + (text if self.command != "HEAD" else b""))

    def _linger(self) -> None:
        """Reads on for a moment, as closing with bytes unread would reset the connection before the answer is seen."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and self.connection.recv(2**18):
                pass

    def handle_expect_100(self) -> bool:
        """Asks for the body, unless its length alone is too much; the request is then refused without it."""
        try:
            fits = self._length() <= self.server.limits.body
        except Refused:
            fits = False
        return super().handle_expect_100() if fits else True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Says as JSON what the standard library finds wrong with a request, and ends the connection."""
        self.close_connection = True
        status = 405 if code == HTTPStatus.NOT_IMPLEMENTED else code
        self._reply(status, {"error": f"the request cannot be read: {message or HTTPStatus(code).phrase}."})

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing; a line a request would be most of what the server prints."""


def _scored(batcher: Batcher, pictures: list[Picture], prompts: list[str]) -> tuple[list[float | None], list[str]]:
    """Value and note of every picture, the value None where there is no score."""
    values: list[float | None] = [None] * len(pictures)
    notes = [picture.note for picture in pictures]
    readable = {i: picture.image for i, picture in enumerate(pictures) if picture.image}
    scores = batcher.score(list(readable.values()), [prompts[i] for i in readable] if prompts else [])
    for i, value, note in zip(readable, scores.values.tolist(), scores.notes, strict=True):
        values[i] = value if math.isfinite(value) else None
        notes[i] = note or ("" if math.isfinite(value) else f"the score is {value}")
    return values, notes


def spec_document(name: str, spec: RewardSpec) -> dict[str, Any]:
    """The spec in JSON's own types, under the name by which it is served; null for a bound that is infinite."""
    document = dataclasses.asdict(spec) | {"name": name}
    return document | {end: document[end] if math.isfinite(document[end]) else None for end in ("low", "high")}
