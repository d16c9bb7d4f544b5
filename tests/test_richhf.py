"""RichHF-18k: TFRecord files read without TensorFlow, and ratings joined with Pick-a-Pic's prompts and images."""

from __future__ import annotations

import base64
import runpy
import struct
from pathlib import Path
from typing import Any

import pytest

from rwk.rewards.formats import read
from rwk.rewards.tfrecord import checksum, example, examples

CASE = runpy.run_path(str(Path(__file__).with_name("formats_case.py")))
encoded, left_out, parquet, pick, told = (CASE[name] for name in ("encoded", "left_out", "parquet", "pick", "told"))
WRITTEN = base64.b64decode(
    "awAAAAAAAACH76bhCmkKHAoIZmlsZW5hbWUSEAoOCgx0cmFpbi91MS5wbmcKGQoNb3ZlcmFsbF9zY29yZRIIEgYKBAAAQD8KFgoBbhIRGg8KDQP/"
    "//////////8BrAIKFgoGc2NvcmVzEgwSCgoIAAAAPwAAAMAEfyyjOwAAAAAAAAAaI6xcCjkKHAoIZmlsZW5hbWUSEAoOCgx0cmFpbi91Mi5wbmcK"
    "GQoNb3ZlcmFsbF9zY29yZRIIEgYKBAAAgD6d6JPK"
)
"""Two records that the package tfrecord 1.14.6 wrote, with protobuf's own encoder and crc32c's checksums."""


def field(number: int, message: bytes) -> bytes:
    """A field of protobuf's wire type 2, of fewer than 16,384 bytes."""
    size = bytes([len(message)]) if len(message) < 128 else bytes([len(message) & 127 | 128, len(message) >> 7])
    return bytes([number << 3 | 2]) + size + message


def record(values: dict[str, bytes | float]) -> bytes:
    """A framed tf.train.Example of bytes and floats."""
    entries = b""
    for name, value in values.items():
        held = field(1, field(1, value)) if isinstance(value, bytes) else field(2, field(1, struct.pack("<f", value)))
        entries += field(1, field(1, name.encode()) + field(2, held))
    data = field(1, entries)
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", checksum(head)) + data + struct.pack("<I", checksum(data))


def rated(uid: str, overall: float, artifact: float) -> bytes:
    """A record with the eight features of RichHF-18k."""
    scores = {"aesthetics_score": 0.5, "artifact_score": artifact, "misalignment_score": 0.25, "overall_score": overall}
    maps = {"artifact_map": encoded("a"), "misalignment_map": encoded("b"), "prompt_misalignment_label": b"1 0"}
    return record({"filename": f"train/{uid}.png".encode(), **scores, **maps})


def test_records_of_another_writer_are_read(tmp_path: Path) -> None:
    """Bytes, packed floats and packed integers with their signs, from a file that this code did not write."""
    path = tmp_path / "x.tfrecord"
    path.write_bytes(WRITTEN)
    first = {"filename": [b"train/u1.png"], "overall_score": [0.75], "n": [3, -1, 300], "scores": [0.5, -2.0]}
    assert list(examples(path)) == [first, {"filename": [b"train/u2.png"], "overall_score": [0.25]}]


def test_lists_need_not_be_packed() -> None:
    """Floats and integers that each stand in a field of their own are read too, as protobuf asks of a reader."""
    floats = b"".join(b"\x0d" + struct.pack("<f", value) for value in (0.5, 4.0))
    integers = b"\x08\x07\x08\x96\x01"
    entries = [field(1, b"f") + field(2, field(2, floats)), field(1, b"i") + field(2, field(3, integers))]
    assert example(field(1, b"".join(field(1, entry) for entry in entries))) == {"f": [0.5, 4.0], "i": [7, 150]}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[:-6], "record 2 must have 63 bytes, got the end of the file"),
        (lambda whole: whole[:30] + b"?" + whole[31:], "record 1 does not match its checksum"),
        (lambda whole: b"\x00" + whole[1:], "record 1 has no intact length"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "record 1 has no intact length"),
        (lambda whole: whole + b"\x01\x02", "record 3 has no intact length"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage: Any, said: str) -> None:
    """A cut file, a changed byte, a changed length, and the pointer that stands in for a file not fetched."""
    path = tmp_path / "dev.tfrecord"
    path.write_bytes(damage(WRITTEN))
    with pytest.raises(ValueError, match=said):
        list(examples(path))


def test_a_message_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Framed data that is no tf.train.Example is said to be none."""
    data = b"\x0a\x7fshort"
    head = struct.pack("<Q", len(data))
    path = tmp_path / "dev.tfrecord"
    path.write_bytes(head + struct.pack("<I", checksum(head)) + data + struct.pack("<I", checksum(data)))
    with pytest.raises(ValueError, match=r"record 1 is no tf\.train\.Example: a field is longer than its message"):
        list(examples(path))


def test_ratings_become_pairs_of_pick_a_pic_s_prompts(tmp_path: Path) -> None:
    """Images of one prompt make pairs, equal ratings ties; the aspect chooses the rating; strays are counted."""
    ratings = [("u-a", 0.5, 1.0), ("u-c", 1.0, 0.5), ("u-b", 0.5, 0.25), ("u-e", 0.5, 0.5), ("u-z", 0.5, 0.5)]
    path = tmp_path / "dev.tfrecord"
    path.write_bytes(b"".join(rated(*of) for of in ratings))
    with pytest.raises(FileNotFoundError, match="holds no prompts, and .* has no Pick-a-Pic table"):
        read(path)
    parquet(tmp_path / "other.parquet", [{"image": "x"}])
    rows = [pick("a", "b", 1.0), pick("c", "a", 0.5), pick("d", "e", 0.0, caption="a cat")]
    parquet(tmp_path / "pick" / "train-0.parquet", rows)
    data = read(path)
    assert told(data) == [("a dog", "a", "c", 0, 1), ("a dog", "a", "b", 0.5, 1), ("a dog", "c", "b", 1, 1)]
    alone, stray = "they are the only rated image of their prompt", "no Pick-a-Pic table has their uid"
    assert left_out(data) == {alone: 1, stray: 1}
    assert [of[3] for of in told(read(f"richhf.artifact:{path}"))] == [1, 1, 1]
    assert data.digest() == read(path).digest()
