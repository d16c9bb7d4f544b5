"""Small random weights of the benchmarks' judges, in folders laid out as the published ones are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwk.adapters import geneval
from rwk.adapters.blip_vqa import BlipVqa
from rwk.adapters.clip_towers import SMALL, open_clip_network, small
from rwk.adapters.clipscore import ClipScore
from rwk.adapters.compbench import CompbenchSpatial
from rwk.adapters.dpt import Dpt
from rwk.adapters.geneval import Geneval

TESTS = Path(__file__).parent
BLIP = runpy.run_path(str(TESTS / "blip_case.py"))
VQA = runpy.run_path(str(TESTS / "test_blip_vqa.py"))


def geneval_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """NAME@PATH of GenEval's reward, whose networks the folder gets; while the patch holds they are built as small."""
    tiny = Geneval.tiny()
    tiny.detector.network.save_pretrained(folder)
    save_file(tiny.clip.state_dict(), folder / "open_clip_model.safetensors")
    monkeypatch.setattr(geneval, "architecture", lambda name: {**SMALL, "quick_gelu": True})
    monkeypatch.setattr(Geneval, "preprocess", small(Geneval.preprocess))
    return f"geneval.strict@{folder}"


def blip_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """NAME@PATH of T2I-CompBench's BLIP, likewise."""
    folder.mkdir()
    torch.save({"model": {k: torch.tensor(v) for k, v in BLIP["vqa"]().items()}}, folder / BlipVqa.origin.file)
    (folder / "vocab.txt").write_text("\n".join(BLIP["full_vocabulary"]()))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    monkeypatch.setattr(BlipVqa, "build", staticmethod(VQA["build"]))
    return f"blip_vqa.compbench@{folder}"


def clip_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """NAME@PATH of T2I-CompBench's CLIP, likewise."""
    folder.mkdir()
    monkeypatch.setattr(ClipScore, "build", staticmethod(lambda: open_clip_network({**SMALL, "quick_gelu": True})))
    monkeypatch.setattr(ClipScore, "preprocess", small(ClipScore.preprocess))
    torch.manual_seed(0)
    save_file(ClipScore.build().state_dict(), folder / "open_clip_model.safetensors")
    return f"clipscore.b32_cosine@{folder}"


def detector_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NAME@PATH of T2I-CompBench's rewards that look for things, and how near they are, likewise."""
    tiny = CompbenchSpatial.tiny()
    tiny.network.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    Dpt.tiny().network.save_pretrained(folder / "depth")
    monkeypatch.setattr("rwk.adapters.compbench.DEPTH_SIDE", 64)
    return [f"compbench.{kind}@{folder}" for kind in ("spatial", "spatial_3d", "numeracy")]
