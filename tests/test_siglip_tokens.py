"""What SigLIP and SigLIP 2 read of a prompt, id by id: as transformers' tokenizers of theirs, and as open_clip's."""

from __future__ import annotations

import html
import json
import runpy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ftfy
import pytest
import torch

from rwk.adapters.siglip import Siglip, Siglip2

TESTS = Path(__file__).parent
RECORDED = TESTS / "parity" / "siglip.json"
AGREE = runpy.run_path(str(TESTS / "parity_case.py"))["agree"]
GEMMA = runpy.run_path(str(TESTS / "test_siglip_naflex.py"))["gemma"]
CONTROL = ["</s> end <unk> <pad>"]
"""What transformers takes for tokens that steer, and SigLIP's adapter for words."""
PROMPTS = [
    *('A photo of a "red" cat, 2 dogs & co.', "", "   ", "L'ÉTÉ à la plage — “naïve” café’s", "猫と犬 a cat"),
    *("UPPER_case under_score", "emoji 🐱!", "tab\tnew\nline a\u00a0b", "a red cat " * 40, "&amp; &lt;b&gt; html"),
    *("- leading dash", "'s end", "İstanbul STRASSE ß", "…ellipsis", "ﬁne ①", "don't co-operate (really)"),
    *("!!!", "?a", " a  cat ", "a cat? yes!" + "." * 90 + " a dog", *CONTROL),
]


def ids(tokenizer: Any, prompts: list[str], kind: type[Siglip] = Siglip) -> list[list[int]]:
    """[B][64] what the adapter reads with a tokenizer of the published files."""
    reward = kind.of(kind.tiny().network, preprocess=kind.preprocess, tokenizer=tokenizer)
    read: list[list[int]] = reward.ids(prompts).tolist()
    return read


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded pieces in a tokenizer.json, which needs no sentencepiece: spaces, forms and pieces as there."""
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast, T5Tokenizer

    pieces = [tuple(pair) for pair in json.loads(RECORDED.read_text())["pieces"]]
    made = T5Tokenizer(vocab=pieces, extra_ids=0, pad_token="</s>").backend_tokenizer
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    folder = tmp_path_factory.mktemp("t5")
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **marks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma's tokenizer in the files of google/siglip2-base-patch16-224."""
    folder = tmp_path_factory.mktemp("gemma")
    GEMMA().save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def open_clip(folder: Path, prompts: list[str]) -> list[list[int]]:
    """[B][64] ids as open_clip's configurations of both models have them."""
    from open_clip.tokenizer import HFTokenizer

    read: list[list[int]] = HFTokenizer(str(folder), context_length=64, clean="canonicalize")(prompts).tolist()
    return read


@pytest.mark.filterwarnings("ignore:siglip:UserWarning")  # some are too long
def test_siglip_reads_what_transformers_reads(t5: Path, record_property: Any) -> None:
    """Quotes, capitals, marks, other letters, nothing, too much: each id is that of SiglipTokenizer."""
    recorded = json.loads(RECORDED.read_text())
    official = {prompt: row + [1] * (64 - len(row)) for prompt, row in recorded["ids"].items()}
    assert list(official) == PROMPTS
    found = dict(zip(PROMPTS, ids(loaded(t5), PROMPTS), strict=True))
    assert [prompt for prompt in PROMPTS if found[prompt] != official[prompt]] == CONTROL
    assert len({tuple(row) for row in official.values()}) == len(PROMPTS) - 2  # nothing, spaces and marks alone
    assert len(recorded["ids"]["a red cat " * 40]) == 64
    values, expected = (torch.tensor([rows[prompt] for prompt in PROMPTS[:-1]]) for rows in (found, official))
    AGREE(record_property, f"{Siglip.spec.name}, ids", recorded, values, expected)


@pytest.mark.filterwarnings("ignore:siglip:UserWarning")
def test_siglip_reads_what_open_clip_reads_but_for_its_cleaning(t5: Path) -> None:
    """open_clip undoes HTML, straightens curly quotes and takes _ for a space, and then reads the same."""
    theirs, tokenizer = open_clip(t5, PROMPTS), loaded(t5)
    apart = [prompt for prompt, a, b in zip(PROMPTS, ids(tokenizer, PROMPTS), theirs, strict=True) if a != b]
    assert apart == ["L'ÉTÉ à la plage — “naïve” café’s", "UPPER_case under_score", "&amp; &lt;b&gt; html"]
    cleaned = [html.unescape(ftfy.fix_text(prompt)).replace("_", " ") for prompt in PROMPTS]
    assert ids(tokenizer, cleaned) == theirs


@pytest.mark.filterwarnings("ignore:siglip:UserWarning")
def test_siglip2_reads_what_transformers_reads(gemma: Path, record_property: Any) -> None:
    """Each id is that of Siglip2Tokenizer, and of Gemma's, which knows no small letters, of the prompt in these."""
    from transformers import GemmaTokenizer, Siglip2Tokenizer

    options = {"padding": "max_length", "max_length": 64, "truncation": True}
    official = Siglip2Tokenizer.from_pretrained(gemma)
    expected = official(PROMPTS, **options)["input_ids"]
    found = ids(loaded(gemma), PROMPTS, Siglip2)
    run = {"package": "transformers", "versions": {"transformers": version("transformers")}}
    AGREE(record_property, f"{Siglip2.spec.name}, ids", run, torch.tensor(found), torch.tensor(expected))
    older = GemmaTokenizer.from_pretrained(gemma)
    assert ids(older, PROMPTS, Siglip2) == expected
    assert len({tuple(row) for row in expected}) == len(PROMPTS)
    long = official.convert_tokens_to_ids("<eos>")
    assert expected[PROMPTS.index("a red cat " * 40)][-1] == long


@pytest.mark.filterwarnings("ignore:siglip:UserWarning")
def test_siglip2_keeps_the_marks_that_open_clip_takes_out(gemma: Path) -> None:
    """The authors make letters small and leave marks; of a prompt without them open_clip reads the same."""
    theirs = open_clip(gemma, PROMPTS)
    own = [html.unescape(ftfy.fix_text(prompt)).replace("_", " ") for prompt in PROMPTS]
    assert ids(loaded(gemma), [Siglip.canonical(prompt) for prompt in own], Siglip2) == theirs
    plain = [prompt for prompt in own if Siglip.canonical(prompt) == Siglip2.canonical(prompt)]
    assert len(plain) > 4
    assert ids(loaded(gemma), plain, Siglip2) == open_clip(gemma, plain)
