"""A request for scores, read without trusting it: bytes in; images, prompts and the reward's name out."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any

from PIL import Image, UnidentifiedImageError

from rwk.rewards.base import to_rgb
from rwk.rewards.images import Picture
from rwk.rewards.readable import is_text

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Kinds of image that are read. Pillow knows more, and runs a program for some (EPS)."""
FIELDS = ("reward", "images", "prompts")


class Refused(ValueError):
    """Says in one sentence why a request is not answered; `status` is that of HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a server takes."""

    body: int = 32 * 2**20
    """Bytes of one request."""
    images: int = 256
    """Images of one request."""
    pixels: int = 2**26
    """Pixels of all images of one request."""
    prompt: int = 10_000
    """Characters of one prompt."""
    memory: int = 2**31
    """Bytes of all requests at once, in estimate; more are told to come again."""
    connections: int = 256
    """Connections at once; more are told to come again."""
    seconds: float = 60.0
    """How long a request may take to arrive."""


@dataclass(frozen=True)
class ScoreRequest:
    """What a client asks for."""

    reward: str | None
    files: list[bytes]
    """Image files as they were sent."""
    prompts: list[str]
    """One for each file, or none."""


def parse(body: bytes, content_type: str, limits: Limits) -> ScoreRequest:
    """The request that a body holds, as JSON or as a form with files.

    Raises:
        Refused: 400 for what cannot be read, 413 for too much of it, 415 for another content type.
    """
    header = Message()
    header["Content-Type"] = content_type
    kind = header.get_content_type()
    if kind == "application/json":
        request = _from_json(body, limits)
    elif kind == "multipart/form-data":
        request = _from_form(body, header.get_boundary() or "", limits)
    else:
        came = content_type[:80] or "none"
        raise Refused(415, f"Content-Type must be application/json or multipart/form-data, got {came}.")
    _check_counts(request, limits)
    return request


def _from_json(body: bytes, limits: Limits) -> ScoreRequest:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body must be JSON, got {len(body)} bytes that are not: {error}.") from error
    if not isinstance(document, dict):
        raise Refused(400, f"the body must be a JSON object, got {_kind(document)}; send {{reward, images, prompts}}.")
    for name in document:
        if name not in FIELDS:
            raise Refused(400, _unknown(name))
    reward = document.get("reward")
    if not isinstance(reward, str | None):
        raise Refused(400, f"reward must be a name, got {_kind(reward)}.")
    images = _texts("images", document.get("images"))
    _check_images(len(images), limits)  # before any is decoded
    return ScoreRequest(reward, [_bytes(i, text) for i, text in enumerate(images)], _prompts(document))


def _prompts(document: dict[str, Any]) -> list[str]:
    prompts = document.get("prompts")
    return [] if prompts is None else _texts("prompts", prompts)


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise Refused(400, f"{name} must be a list of strings, got {_kind(value)}.")
    for i, text in enumerate(value):
        if not isinstance(text, str):
            raise Refused(400, f"{name} must be a list of strings, got {_kind(text)} at place {i}.")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _unknown(name: str) -> str:
    return f"the fields are {', '.join(FIELDS)}, got {name[:40]!r}; check its spelling."


def _bytes(index: int, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(
            400, f"image {index} must be a file in base64, got {len(text)} characters that are not; encode the file."
        ) from error


def _from_form(body: bytes, boundary: str, limits: Limits) -> ScoreRequest:
    """The request in a form (RFC 7578): fields `images` with a file each, `prompts` and `reward`."""
    reward: str | None = None
    files: list[bytes] = []
    prompts: list[str] = []
    for name, content in _parts(body, boundary, most=2 * limits.images + 1):
        if name == "images":
            files.append(content)
        elif name == "prompts":
            prompts.append(_decoded(name, content))
        elif name == "reward":
            reward = _decoded(name, content)
        else:
            raise Refused(400, _unknown(name))
    return ScoreRequest(reward, files, prompts)


def _parts(body: bytes, boundary: str, most: int) -> list[tuple[str, bytes]]:
    """Name and content of every part of a form."""
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(mark, most + 2)
    broken = Refused(400, f"the form must end with its boundary, got {len(body)} bytes that do not; check the client.")
    if not boundary or len(pieces) < 2:
        raise broken
    if len(pieces) > most + 2:
        raise Refused(413, f"a form may hold {most} fields, got more; send several requests.")
    *inner, end = pieces[1:]
    if not end.startswith(b"--"):
        raise broken
    return [_part(piece) for piece in inner]


def _part(piece: bytes) -> tuple[str, bytes]:
    head, blank, content = piece.partition(b"\r\n\r\n")
    name = BytesHeaderParser().parsebytes(head.lstrip()).get_param("name", header="content-disposition")
    if not blank or not isinstance(name, str):
        raise Refused(400, "every field of a form must have a Content-Disposition with a name, got one without.")
    return name, content


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"{name} must be UTF-8, got {len(content)} bytes that are not.") from error


def _check_images(count: int, limits: Limits) -> None:
    if count > limits.images:
        raise Refused(413, f"a request may hold {limits.images} images, got {count}; send several requests.")


def _check_counts(request: ScoreRequest, limits: Limits) -> None:
    if not request.files:
        raise Refused(400, "a request must hold at least one image, got none; send them as images.")
    _check_images(len(request.files), limits)
    for i, prompt in enumerate(request.prompts):
        if len(prompt) > limits.prompt:
            raise Refused(413, f"a prompt may have {limits.prompt:,} characters, got {len(prompt):,} in prompt {i}.")
        if not is_text(prompt):
            raise Refused(400, f"a prompt must be Unicode text, got half of a surrogate pair in prompt {i}.")


def open_images(files: list[bytes], limits: Limits) -> tuple[list[Image.Image | str], int]:
    """The images, of which only the headers are read yet, and their pixels; a text in place of one says what is wrong.

    Raises:
        Refused: 413 when they would decode to more pixels than the limit.
    """
    opened: list[Image.Image | str] = []
    pixels = 0
    for i, data in enumerate(files):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Refused(413, _too_many(f"over {Image.MAX_IMAGE_PIXELS:,}", i, limits)) from error
        except UnidentifiedImageError:
            opened.append(f"not an image of a kind that can be read here ({', '.join(FORMATS)})" if data else "empty")
        except Exception as error:  # Pillow's readers raise whatever malformed bytes lead them to
            opened.append(_why(error))
        else:
            opened.append(image)
            pixels += image.width * image.height
            if pixels > limits.pixels:
                raise Refused(413, _too_many(f"{pixels:,}", i, limits))
    return opened, pixels


def _too_many(pixels: str, index: int, limits: Limits) -> str:
    return (
        f"the images of a request may have {limits.pixels:,} pixels in all, got {pixels} up to image {index}; "
        f"send fewer or smaller images."
    )


def decode(opened: Image.Image | str) -> Picture:
    """The image upright and in RGB, or why there is none; never raises for what is in the file."""
    if isinstance(opened, str):
        return Picture(None, opened)
    try:
        return Picture(to_rgb(opened), "")
    except Exception as error:
        return Picture(None, _why(error))


def _why(error: Exception) -> str:
    return f"cannot be decoded: {error or type(error).__name__}"
