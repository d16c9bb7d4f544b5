"""`rwk info`: what it tells of each kind of name, and that it loads, builds and downloads nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.policy_opt.generator import GENERATORS
from rwk.rewards.precision import UNMEASURED
from rwk.rewards.registry import REWARDS, load
from rwk.rewards.staged import EmbeddedReward
from rwk.rewards.weights import Weights

Rwk = Callable[..., Any]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub and of torch, and no network; the folder of the hub's cache."""

    def refuse(*ignored: Any, **also: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "cache"


def cached(cache: Path, hub: str, files: dict[str, str]) -> None:
    """Lays files into the cache as the hub's client does."""
    repository = cache / f"models--{hub.replace('/', '--')}"
    for file, text in files.items():
        path = repository / "snapshots" / "abc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")


def told(rwk: Rwk, *arguments: str) -> dict[str, Any]:
    ended = rwk("info", *arguments, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_a_published_reward(rwk: Rwk, bare: Path) -> None:
    """Formula, terms, tolerance, file, size and licence are told, and whether the file is in the cache."""
    found = told(rwk, "hpsv2.v21")
    assert found["about"].startswith("HPS v2.1: the network of `hpsv2.v20`")
    assert {key: found[key] for key in ("unit", "low", "high", "licence", "source", "needs_prompt")} == {
        "unit": "cosine",
        "low": -1,
        "high": 1,
        "licence": "Apache-2.0",
        "source": "arXiv:2306.09341",
        "needs_prompt": True,
    }
    assert (found["differentiable"], found["tolerance"], found["megabytes"]) == (True, 0, 3944)
    (weights,) = found["weights"]
    assert (weights["source"], weights["file"]) == ("xswu/HPSv2", "HPS_v2.1_compressed.pt")
    assert (weights["licence"], weights["path"]) == ("Apache-2.0", None)
    assert weights["advice"].endswith("name hpsv2.v21@PATH")
    cached(bare, "xswu/HPSv2", {"HPS_v2.1_compressed.pt": ""})
    assert told(rwk, "hpsv2.v21")["weights"][0]["path"].endswith("snapshots/abc/HPS_v2.1_compressed.pt")
    assert told(rwk, "hpsv2.v20")["weights"][0]["path"] is None


def test_the_table_says_the_same(rwk: Rwk, bare: Path) -> None:
    """Without `--json` the same stands in a table, text in square brackets included."""
    shown = " ".join(rwk("info", "imagereward.v1").out.split())
    for words in ("imagereward.v1", "-∞ to ∞", "THUDM/ImageReward ImageReward.pt; 1,790 MB", "not here: downloaded on"):
        assert words in shown
    assert "h is the state of [CLS] after twelve layers" in shown
    assert "none; `rwk calibrate` makes one" in shown
    assert "score_pixels within 0.01 of the score" in shown


def test_drift_of_everything_published_that_embeds_is_known() -> None:
    """Each names its own, or has the network of the class that it takes it from."""
    kinds = {name: REWARDS.target(name) for name in REWARDS.names() if "." in name}
    embedding = {name: kind for name, kind in kinds.items() if issubclass(kind, EmbeddedReward)}
    assert len(embedding) >= 20
    for name, kind in embedding.items():
        source = next(base for base in kind.__mro__ if "drift" in vars(base))
        assert kind.drift["bfloat16"] > 0, name
        sizes = [(getattr(each, "architecture", ""), getattr(each, "shape", {})) for each in (kind, source)]
        assert sizes[0] == sizes[1], name


def test_every_published_network_has_a_drift_or_says_why_not() -> None:
    """A bound for bfloat16 that was measured, or a sentence, for all that has a name and weights of others."""
    kinds = {name: REWARDS.target(name) for name in REWARDS.names() if "." in name}
    assert sum(bool(kind.drift) for kind in kinds.values()) >= 24
    for name, kind in kinds.items():
        assert bool(kind.drift or kind.precision_note) == (kind.casts or bool(kind.precision_note)), name
        assert all(most > 0 for most in kind.drift.values()), name
        assert not kind.drift or (kind.casts and "bfloat16" in kind.drift), name
        written = "read out of words" in kind.precision_note  # so that there is no bound
        assert bool(kind.drift) != (kind.precision_note == UNMEASURED) or not kind.casts or written, name


def test_what_half_precision_changes_is_told(rwk: Rwk, bare: Path) -> None:
    """Where the drift of a score was measured it is told; where a network stays as it is, or was not measured, why."""
    assert told(rwk, "clipscore.b32_cosine")["drift"] == {"bfloat16": 0.0012, "float16": 7.5e-05}
    shown = " ".join(rwk("info", "clipscore.b32_cosine").out.split())
    assert "half precision bfloat16 moves a score by up to 0.0012, float16" in shown
    found = told(rwk, "geneval.strict")
    assert (found["drift"], found["precision_note"][:13]) == (None, "both networks")
    assert "half precision both networks stay in float32" in " ".join(rwk("info", "geneval.strict").out.split())
    assert "half precision" not in rwk("info", "contrast").out


def test_every_file_of_a_list_counts(rwk: Rwk, bare: Path) -> None:
    """A checkpoint in several files is here when all are, for an origin and for a repository of transformers."""
    places = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    whole = {"model.safetensors.index.json": json.dumps(places), "one.safetensors": "", "two.safetensors": ""}
    for name, hub in (("orm.t2i_r1", "CaraJ/ORM-T2I-R1"), ("judge.yes", "Qwen/Qwen2.5-VL-7B-Instruct")):
        assert told(rwk, name)["weights"][0]["path"] is None
        cached(bare, hub, dict(list(whole.items())[:2]))
        assert told(rwk, name)["weights"][0]["path"] is None
        (bare / f"models--{hub.replace('/', '--')}" / "snapshots" / "abc" / "two.safetensors").touch()
        assert told(rwk, name)["weights"][0]["path"].endswith("model.safetensors.index.json")


def test_two_checkpoints_and_a_plain_address(rwk: Rwk, tmp_path: Path) -> None:
    """LAION's predictor is a head from GitHub, looked for where torch.hub keeps it, and a tower from the hub."""
    head, tower = told(rwk, "aesthetic.v2")["weights"]
    assert tower["advice"].endswith("copy all files into one folder and name aesthetic.v2@PATH")
    assert (head["source"][:11], tower["file"]) == ("github.com/", "open_clip_model.safetensors")
    assert (head["path"], tower["path"]) == (None, None)
    kept = tmp_path / "torch" / "checkpoints" / head["file"]
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert told(rwk, "aesthetic.v2")["weights"][0]["path"] == str(kept)
    assert told(rwk, "aesthetic.v2")["megabytes"] == 4 + 1711


@pytest.mark.parametrize("name", [*REWARDS.names(), *GENERATORS.names()])
def test_every_name_is_told_of_without_its_network(rwk: Rwk, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every registered name has a description, a class and a licence, and the class is not built at full size."""
    registry: Any = REWARDS if name in REWARDS.names() else GENERATORS
    kind = registry.target(name)

    def refuse(self: Any, *ignored: Any, **also: Any) -> None:
        raise AssertionError("the class was built")

    if name in REWARDS.names():
        monkeypatch.setattr(kind, "__init__", refuse)
    found = told(rwk, name)
    assert found["about"]
    assert found["licence"]
    assert found["kind"] == registry.kind
    assert found["class"].startswith("rwk.")


def test_shipped_weights_and_none(rwk: Rwk) -> None:
    """The built-in world's weights come with the package, a measure of pixels needs none, a bare network has none."""
    for name in ("shapes.clip", "shapes.llama"):
        (weights,) = told(rwk, name)["weights"]
        assert Path(weights["path"], "model.safetensors").is_file()
        assert 0.1 < weights["megabytes"] < 12
    assert (told(rwk, "contrast")["weights"], told(rwk, "contrast")["megabytes"]) == ([], 0)
    assert (told(rwk, "timm_head")["weights"], told(rwk, "timm_head")["megabytes"]) == ([], None)
    assert "needs none" in rwk("info", "contrast").out
    assert "`rwk train-reward` makes rewards of this kind" in rwk("info", "timm_head").out


def test_kept_rewards_and_folders(rwk: Rwk, rwk_home: Path, tmp_path: Path) -> None:
    """A kept name and a folder tell what they were saved as, where, and which measurements lie beside them."""
    tiny = REWARDS.target("timm_head").tiny()
    for place in (rwk_home / "rewards" / "mine", tmp_path / "folder"):
        tiny.save(place)  # type: ignore[attr-defined]
    for name, place in (("mine", rwk_home / "rewards" / "mine"), ("folder", Path("folder"))):
        found = told(rwk, name)
        assert Path(found["folder"]) == place
        assert found["weights"][0]["path"] == str(place)
        assert found["megabytes"] > 0
        assert (found["calibration"], found["reward_card"]) == (None, None)
    (rwk_home / "rewards" / "mine" / "calibration.json").write_text("{}")
    (rwk_home / "rewards" / "mine" / "reward_card.json").write_text("{}")
    found = told(rwk, "mine")
    assert found["calibration"].endswith("mine/calibration.json")
    assert found["reward_card"].endswith("mine/reward_card.json")


def test_a_folder_of_a_generator(rwk: Rwk, tmp_path: Path) -> None:
    """A folder is told of as what it holds."""
    GENERATORS.target("shapes.llama").tiny().save(tmp_path / "drawn")  # type: ignore[attr-defined]
    found = told(rwk, "drawn")
    assert (found["kind"], found["image_size"]) == ("generator", 48)
    assert "calibration" not in found


def test_a_folder_chooses_no_code(rwk: Rwk, tmp_path: Path) -> None:
    """A folder that names `module:Class` is refused, as loading it would be, and nothing is imported."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"rwk_reward": "antigravity:Reward"}')
    ended = rwk("info", "bad")
    assert ended.code == 2
    assert "bad was saved by reward 'antigravity:Reward', which is not installed here" in ended.err


def test_ones_own_weights(rwk: Rwk, tmp_path: Path) -> None:
    """NAME@PATH tells of that file in place of the published one."""
    (tmp_path / "own.pt").write_bytes(bytes(2_500_000))
    found = told(rwk, "hpsv2.v21@own.pt")
    assert (found["weights"][0]["path"], found["megabytes"]) == ("own.pt", 2.5)
    found = told(rwk, "hpsv2.v21@none.pt")
    assert (found["weights"][0]["path"], found["weights"][0]["advice"]) == (None, "there is no such file")


@pytest.mark.parametrize(
    "name", ["judge.yes_no", "unifiedreward.pointwise", "unifiedreward.pair", "janus.pro_1b", "simplear.sft_0_5b"]
)
def test_a_repository_of_ones_own(rwk: Rwk, bare: Path, tmp_path: Path, name: str) -> None:
    """NAME@ID, where ID is a repository that loading would download, tells so, and whether the cache has it."""
    asked = f"{name}@Qwen/Qwen2-VL-2B-Instruct"
    (weights,) = told(rwk, asked)["weights"]
    assert (weights["source"], weights["path"]) == ("Qwen/Qwen2-VL-2B-Instruct", None)
    assert weights["advice"] == (
        "no folder of that name, so a repository, downloaded on first use; "
        f"without a network copy all files into one folder and name {name}@PATH"
    )
    cached(bare, "Qwen/Qwen2-VL-2B-Instruct", {"model.safetensors": ""})
    assert told(rwk, asked)["weights"][0]["path"].endswith("snapshots/abc/model.safetensors")
    (tmp_path / "Qwen" / "Qwen2-VL-2B-Instruct").mkdir(parents=True)
    assert told(rwk, asked)["weights"][0]["path"] == "Qwen/Qwen2-VL-2B-Instruct"
    (weights,) = told(rwk, f"{name}@./models/none")["weights"]
    assert weights["advice"] == "there is no such file"


def test_an_expression_tells_of_its_parts(rwk: Rwk) -> None:
    """The range and terms are those of the loaded combination, and each part is described, its weights not loaded."""
    expression = "0.5*contrast+2*noise"
    found, spec = told(rwk, expression), load(expression).spec
    assert (found["unit"], found["low"]) == (spec.unit, spec.low)
    assert list(found["parts"]) == ["contrast", "noise"]
    found = told(rwk, "hpsv2.v21+aesthetic.v2")
    assert found["needs_prompt"] is True
    assert found["megabytes"] == 3944 + 4 + 1711
    shown = rwk("info", "hpsv2.v21+aesthetic.v2").out
    assert "xswu/HPSv2" in shown


def test_a_calibration_by_name(rwk: Rwk, rwk_home: Path) -> None:
    """The calibration of a registered reward is found where `rwk calibrate` keeps it."""
    from rwk.calibration.calibrate import place_of

    place_of("contrast").parent.mkdir(parents=True)
    place_of("contrast").write_text("{}")
    assert told(rwk, "contrast")["calibration"] == str(place_of("contrast"))


def test_an_unknown_name_is_the_registrys_sentence(rwk: Rwk) -> None:
    """A misspelt name is answered as by every other command, with exit code 2."""
    ended = rwk("info", "hpsv2.v22")
    assert (ended.code, ended.out) == (2, "")
    assert "unknown reward 'hpsv2.v22'; did you mean hpsv2.v21" in ended.err


def test_a_damaged_list_is_not_here(bare: Path) -> None:
    """A list of files that cannot be read does not count as weights."""
    cached(bare, "a/b", {"model.safetensors.index.json": "{"})
    assert Weights("a/b", "model.safetensors.index.json").here() is None
