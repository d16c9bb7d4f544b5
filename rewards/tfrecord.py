"""TFRecord files of tf.train.Example messages, read without TensorFlow.

The framing is tensorflow/core/lib/io/record_writer.h: the length of the data (uint64), its checksum, the data, its
checksum (uint32 each, little-endian). The message is tensorflow/core/example/example.proto in protobuf's wire format.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Feature = list[bytes] | list[float] | list[int]

_HEAD = 12
"""Bytes before the data."""
_FOOT = 4
_SIZES = {1: 8, 5: 4}
"""Bytes of protobuf's fixed wire types."""


def examples(path: Path) -> Iterator[dict[str, Feature]]:
    """The features of each record, by name.

    Raises:
        ValueError: for a file that ends within a record, a wrong checksum, or data that is no such message.
    """
    with path.open("rb") as file:
        number = 0
        while head := file.read(_HEAD):
            number += 1
            where = f"{path} record {number}"
            size = struct.unpack("<Q", head[:8])[0] if len(head) == _HEAD else 0
            if len(head) < _HEAD or checksum(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise ValueError(f"{where} has no intact length, so it is no TFRecord or damaged; fetch the file anew.")
            data, foot = file.read(size), file.read(_FOOT)
            if len(data) < size or len(foot) < _FOOT:
                raise ValueError(f"{where} must have {size + _FOOT} bytes, got the end of the file; fetch it anew.")
            if checksum(data) != struct.unpack("<I", foot)[0]:
                raise ValueError(f"{where} does not match its checksum; fetch the file anew.")
            try:
                yield example(data)
            except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
                raise ValueError(f"{where} is no tf.train.Example: {error}.") from error


def example(message: bytes) -> dict[str, Feature]:
    """The features of one serialised tf.train.Example."""
    found: dict[str, Feature] = {}
    for _, features in _fields(message):
        for _, entry in _fields(_bytes(features)):
            parts = dict(_fields(_bytes(entry)))
            found[_bytes(parts[1]).decode()] = _feature(_bytes(parts.get(2, b"")))
    return found


def _feature(message: bytes) -> Feature:
    """The values of a Feature, which holds one of three lists: bytes, floats, or integers."""
    for kind, held in _fields(message):
        values = [value for _, value in _fields(_bytes(held))]
        if kind == 1:
            return [_bytes(value) for value in values]
        if kind == 2:  # packed into one field, or each in its own
            return [number for value in values for (number,) in struct.iter_unpack("<f", _bytes(value))]
        return [_signed(number) for value in values for number in ([value] if isinstance(value, int) else _all(value))]
    return []


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an integer for a varint, else bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        else:
            size = _SIZES[kind]
        if at + size > len(message):
            raise IndexError("a field is longer than its message")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer of variable length that begins there, and where the next field begins."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _all(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise IndexError("a number stands where a message is expected")
    return value


def checksum(data: bytes) -> int:
    """The masked CRC-32C of TFRecord files.

    >>> hex(checksum(b"123456789"))  # of the CRC 0xe3069283
    '0xc78ab0e5'
    """
    table = _table()
    crc = 0xFFFFFFFF
    for pair in np.frombuffer(data, "<u2", len(data) // 2).tolist():
        crc = table[(crc ^ pair) & 0xFFFF] ^ (crc >> 16)
    for byte in data[len(data) // 2 * 2 :]:
        crc = _step((crc ^ byte) & 0xFF) ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _step(value: int, bits: int = 8) -> int:
    """The CRC-32C register after so many zero bits."""
    for _ in range(bits):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


@functools.cache
def _table() -> list[int]:
    """[65536] the register after the 16 bits of each value: two bytes a step halve the time."""
    return [_step(value, 16) for value in range(65536)]
