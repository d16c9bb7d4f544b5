"""A reward that `rwk serve` computes elsewhere, by its address: `http://host:port/NAME`."""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import torch
from PIL import Image

from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.errors import RunFailed

LONGEST_PAUSE = 8.0
"""Seconds between two tries, at most."""
BUSY = (502, 503, 504)
"""Statuses of a server, or of a proxy before it, that may answer a moment later."""
ENVELOPE = 512
"""Bytes of a request beside its images and prompts."""


class RemoteReward(Reward):
    """The scores of a reward that a server holds; its spec is the server's, its name the address.

    Images are sent without loss, as many at once as the server takes. A server that cannot be reached or is busy is
    asked again after 0.25, 0.5, 1 ... seconds. The machine is addressed itself, not through a proxy.
    """

    precision_note = "it computes as its server loaded it"

    def __init__(self, url: str, *, device: str = "cpu", timeout: float = 120.0, tries: int = 6) -> None:
        """
        Args:
            url: `http://host:port/NAME`, the name quoted as in any address.
            device: of no effect; the server has its own.
            timeout: seconds that a try may wait for the next bytes of an answer.
            tries: how often the server is asked before the run fails.

        Raises:
            ValueError: when the address is none, or no such reward is served there.
            RunFailed: when the server does not answer.
        """
        super().__init__()
        parts = urlsplit(url)
        name = unquote(parts.path.removeprefix("/"))
        rest = parts.username or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or not name or rest:
            raise ValueError(f"the address of a reward must be http://HOST:PORT/NAME, got {url!r}.")
        self.url, self._name = url, name
        self._https, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._timeout, self._tries = timeout, tries
        described = self._asked("GET", "/rewards")
        try:
            specs = {spec["name"]: spec for spec in described["rewards"]}
            self._limits = {key: int(described["limits"][key]) for key in ("body", "images", "pixels")}
            if name not in specs:
                raise ValueError(f"{url} is not served; the server has {', '.join(map(quote, specs))}.")
            self.spec = _spec(url, specs[name])
        except (KeyError, TypeError) as error:
            raise RunFailed(f"{url} answered what no rwk server says: {error!r}; check its address.") from error

    @classmethod
    def tiny(cls) -> RemoteReward:
        """The contrast of an image, served by this process."""
        from rwk.rewards.registry import REWARDS
        from rwk.rewards.server import Server

        server = Server({"contrast": REWARDS.target("contrast").tiny()})
        server.start()
        reward = cls(f"{server.url}/contrast")
        closing = threading.Thread(target=server.close)  # as a collection of garbage may run in a thread that it awaits
        weakref.finalize(reward, closing.start).atexit = False
        return reward

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = torch.full([len(images)], math.nan), [""] * len(images)
        for batch in self._packed(images, prompts, notes):
            document: dict[str, Any] = {"reward": self._name, "images": [text for _, text in batch]}
            if prompts:
                document["prompts"] = [prompts[i] for i, _ in batch]
            scores = self._read(self._asked("POST", "/score", document), len(batch))
            for (i, _), value, note in zip(batch, *scores, strict=True):
                values[i] = math.nan if value is None else value
                notes[i] = note or "no score, and no reason given" * (value is None)
        return Scores(values, notes)

    def _packed(
        self, images: list[Image.Image], prompts: list[str], notes: list[str]
    ) -> Iterator[list[tuple[int, str]]]:
        """Places and files of the images, in lists that the server takes; notes what it takes in none."""
        batch: list[tuple[int, str]] = []
        size = pixels = 0
        for i, image in enumerate(images):
            text = base64.b64encode(_png(image)).decode()
            own_size = len(text) + 16 + (len(json.dumps(prompts[i])) if prompts else 0)
            own_pixels = image.width * image.height
            if own_size + ENVELOPE + len(self._name) > self._limits["body"] or own_pixels > self._limits["pixels"]:
                notes[i] = f"more than the server takes: {image.width}x{image.height} pixels, {len(text):,} bytes"
                continue
            full = len(batch) == self._limits["images"] or pixels + own_pixels > self._limits["pixels"]
            if batch and (full or size + own_size + ENVELOPE + len(self._name) > self._limits["body"]):
                yield batch
                batch, size, pixels = [], 0, 0
            batch.append((i, text))
            size, pixels = size + own_size, pixels + own_pixels
        if batch:
            yield batch

    def _read(self, document: Any, count: int) -> tuple[list[float | None], list[str]]:
        """Values and notes of an answer; raises RunFailed where they are not one a piece for `count` images."""
        try:
            values, notes = document["values"], document["notes"]
            right = len(values) == len(notes) == count and all(isinstance(note, str) for note in notes)
            if right and all(value is None or type(value) in (int, float) for value in values):
                return values, notes
        except (KeyError, TypeError):
            pass
        raise RunFailed(f"{self.url} must answer with {count} values and notes, got {str(document)[:80]}.")

    def _asked(self, method: str, path: str, document: Any = None) -> Any:
        """The server's answer, read as JSON; raises RunFailed where there is none."""
        body = None if document is None else json.dumps(document).encode()
        pause = 0.25
        for last in [False] * (self._tries - 1) + [True]:
            try:
                status, answer = self._once(method, path, body)
                if status not in BUSY:
                    return self._document(status, answer)
                fault = f"HTTP {status}: {_said(answer)}"
            except (OSError, http.client.HTTPException) as error:
                fault = f"{type(error).__name__}: {error}"
            if last:
                break
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise RunFailed(
            f"{self.url} gave no answer in {self._tries} tries, the last {fault}; see that `rwk serve` runs there."
        )

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _document(self, status: int, answer: bytes) -> Any:
        if status != 200:
            raise RunFailed(f"{self.url} answered HTTP {status}: {_said(answer)}")
        try:
            return json.loads(answer)
        except ValueError as error:
            raise RunFailed(f"{self.url} answered {answer[:40]!r}, which is no JSON; check its address.") from error


def _said(answer: bytes) -> str:
    """The sentence in a server's refusal, or how what is not one begins."""
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(answer[:80])


def _png(image: Image.Image) -> bytes:
    bare = image.copy()
    bare.info = {}  # a profile or a transparent colour that came with the file
    file = io.BytesIO()
    bare.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _spec(url: str, document: dict[str, Any]) -> RewardSpec:
    low, high = document["low"], document["high"]
    return RewardSpec(
        name=url,
        unit=str(document["unit"]),
        low=-math.inf if low is None else float(low),
        high=math.inf if high is None else float(high),
        licence=str(document["licence"]),
        source=str(document["source"]),
        needs_prompt=bool(document["needs_prompt"]),
        deterministic=bool(document["deterministic"]),
    )
