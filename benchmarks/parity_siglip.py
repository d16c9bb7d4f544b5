"""Record the ids that transformers' SiglipTokenizer reads the prompts of tests/test_siglip_tokens.py as.

    pip install sentencepiece protobuf
    python benchmarks/parity_siglip.py tests/parity/siglip.json

It runs with this project's packages and these two. A vocabulary is trained by sentencepiece with the settings of the
published one, but small, and saved in the published files; its pieces are recorded too, for tests without the two
packages. It ends with 1 where `rwk.adapters.siglip` reads another id out of the same files, control tokens aside.
"""

from __future__ import annotations

import argparse
import io
import json
import runpy
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_siglip_tokens.py"))
CORPUS = (
    *("a photo of a red cat and two dogs", "the naive cafe on a wooden table", "l'été à la plage", "strasse istanbul"),
    *(
        "don't cooperate really",
        "猫と犬",
        "upper case under score",
        "emoji 🐱 ellipsis fine 1 2 3",
        "leading dash html",
    ),
    *('amp lt gt b end unk pad “quoted” ’s — …", "quoted" & co. (x2)', ",.!?;:'-_*#~"),
)
NOTE = "SiglipTokenizer of spiece.model with padding to 64 and truncation; trailing padding is left out"


def write(folder: Path) -> list[tuple[str, float]]:
    """The tokenizer's files as published, and the pieces with their scores."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=made,
        vocab_size=160,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    held = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64}
    held |= {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(held))
    read = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    return [(read.id_to_piece(i), read.get_score(i)) for i in range(len(read))]


def trimmed(row: list[int]) -> list[int]:
    """Ids up to the first end of text of those at the end."""
    while len(row) > 1 and row[-2:] == [1, 1]:
        row = row[:-1]
    return row


def main() -> int:
    from transformers import AutoTokenizer, SiglipTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    prompts = CASE["PROMPTS"]
    with tempfile.TemporaryDirectory() as folder:
        pieces = write(Path(folder))
        official: Any = SiglipTokenizer.from_pretrained(folder)
        rows = official(prompts, padding="max_length", max_length=64, truncation=True)["input_ids"]
        ours = CASE["ids"](AutoTokenizer.from_pretrained(folder), prompts)
    wrong = [p for p, a, b in zip(prompts, ours, rows, strict=True) if a != b and p not in CASE["CONTROL"]]
    packages = ("transformers", "sentencepiece", "tokenizers")
    recorded = {"package": "transformers", "versions": {name: version(name) for name in packages}, "note": NOTE}
    rest = {"pieces": pieces, "ids": {p: trimmed(row) for p, row in zip(prompts, rows, strict=True)}}
    given.out.write_text(json.dumps(recorded | rest, ensure_ascii=False))
    print(f"{len(wrong)} of {len(prompts)} prompts are read unlike: {wrong}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
