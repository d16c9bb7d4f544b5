"""Published checkpoints: where a file is found, what is read of it and what refused, and how it fits a network."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rwk.adapters.hpsv2 import Hpsv2
from rwk.adapters.published import Origin, fill, find, read
from rwk.rewards import registry
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
ORIGIN = Origin("someone/something", "weights/model.pt", "MIT", 12)


class Runs:
    """Unpickled, it makes a folder: a stand-in for code in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def advised(file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """How the command ended that the refusal of a file names, run in that folder."""
    with pytest.raises(ValueError, match="convert it once") as refused:
        read(file)
    command = shlex.split(str(refused.value).partition(": python ")[2].removesuffix("."))
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=alone, capture_output=True, text=True, timeout=300
    )


class TestFind:
    def test_a_file_or_the_folder_that_holds_it(self, tmp_path: Path) -> None:
        """A path is taken as it is, and in a folder the file is looked for under its published name."""
        file = tmp_path / "model.pt"
        file.touch()
        other = tmp_path / "other.pt"
        other.touch()
        assert find("x", ORIGIN, tmp_path) == find("x", ORIGIN, str(file)) == file
        assert find("x", ORIGIN, other) == other

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        """The error names what is needed and where it was looked for."""
        told = f"x.y needs the file model.pt of someone/something, got no file at {tmp_path / 'model.pt'}; "
        with pytest.raises(ValueError, match=re.escape(told)):
            find("x.y", ORIGIN, tmp_path)

    def test_offline_without_a_cached_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the hub's client offline the error says what is missing, how large it is, and both ways out."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        told = (
            r"x\.y needs weights/model\.pt of someone/something \(about 12 MB\), which is not in the cache and cannot "
            r"be downloaded \(\w+\); with a network, unset HF_HUB_OFFLINE .* name it as x\.y@PATH\."
        )
        with pytest.raises(RunFailed, match=told):
            find("x.y", ORIGIN)

    def test_revision_reaches_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Repository, file and revision are asked for as given."""
        asked = []
        monkeypatch.setattr("rwk.adapters.published.hub_is_near", lambda: True)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append((a, k)) or "/tmp/model.pt")
        assert find("x.y", ORIGIN, revision="v1") == Path("/tmp/model.pt")
        assert asked == [(("someone/something", "weights/model.pt"), {"revision": "v1", "local_files_only": False})]


class TestRead:
    @pytest.mark.parametrize("wrapped", [(), ("state_dict",), ("model",), ("module",)])
    def test_tensors_as_trainers_wrap_them(self, tmp_path: Path, wrapped: tuple[str, ...]) -> None:
        """Bare tensors, and those below the usual keys beside other things, are read alike."""
        held: dict[str, object] = {"weight": torch.arange(3.0)}
        for key in wrapped:
            held = {key: held, "epoch": 3}
        torch.save(held, tmp_path / "model.pt")
        ((key, value),) = read(tmp_path / "model.pt").items()
        assert key == "weight"
        assert value.tolist() == [0, 1, 2]

    def test_safetensors(self, tmp_path: Path) -> None:
        """A safetensors file gives its tensors."""
        save_file({"weight": torch.arange(3.0)}, tmp_path / "model.safetensors")
        assert read(tmp_path / "model.safetensors")["weight"].tolist() == [0, 1, 2]

    @pytest.mark.parametrize("held", ["module", "state and settings", "module in a dict"])
    def test_a_pickled_file_is_refused(self, tmp_path: Path, held: str) -> None:
        """Objects are not opened; the advised command, run as it stands, makes a file that can be read.

        The file is a module, a state beside the settings of a run, or a dict with a module, as trainers write them.
        """
        network, settings = nn.Linear(2, 1), argparse.Namespace(lr=0.1)
        made = {"module": network, "state and settings": {"state_dict": network.state_dict(), "args": settings}}
        torch.save(made.get(held, {"model": network, "epoch": 3}), tmp_path / "own.pt")
        with pytest.raises(
            ValueError, match="own.pt holds pickled objects, which could run code .* convert it once: p"
        ):
            read(tmp_path / "own.pt")
        ended = advised(tmp_path / "own.pt", tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert torch.equal(read(tmp_path / "converted.pt")["weight"], network.weight)

    def test_a_module_of_the_authors_is_converted_in_their_checkout(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error names the modules that are not here; in a checkout that has them the command makes the file."""
        package = tmp_path / "checkout" / "trainer" / "models"
        package.mkdir(parents=True)
        (package / "clip_model.py").write_text("import torch\n\nclass CLIPModel(torch.nn.Linear):\n    pass\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / "checkout")
            kind = importlib.import_module("trainer.models.clip_model").CLIPModel
            torch.save(kind(2, 1), tmp_path / "mps.pt")
        for name in ("trainer", "trainer.models", "trainer.models.clip_model"):
            del sys.modules[name]
        importlib.invalidate_caches()
        told = (
            "convert it once, in a checkout of its authors' code, since it needs trainer.models.clip_model: python -c"
        )
        with pytest.raises(ValueError, match=re.escape(told)):
            read(tmp_path / "mps.pt")
        assert "No module named 'trainer'" in advised(tmp_path / "mps.pt", tmp_path).stderr
        ended = advised(tmp_path / "mps.pt", tmp_path / "checkout")
        assert ended.returncode == 0, ended.stderr
        assert read(tmp_path / "converted.pt").keys() == {"weight", "bias"}

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        """A file that would make a folder when unpickled is refused, and the folder is not there."""
        torch.save({"weight": torch.zeros(1), "more": Runs(tmp_path / "made")}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="holds pickled objects"):
            read(tmp_path / "model.pt")
        assert not (tmp_path / "made").exists()
        torch.load(tmp_path / "model.pt", weights_only=False)
        assert (tmp_path / "made").exists()

    def test_a_program_is_refused_as_one(self, tmp_path: Path) -> None:
        """An archive of TorchScript, as OpenAI publishes CLIP, is not called damaged; the error says how to convert."""
        path = tmp_path / "ViT-B-32.pt"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("ViT-B-32/data.pkl", "ViT-B-32/constants.pkl", "ViT-B-32/code/model.py"):
                archive.writestr(name, b"")
        with pytest.raises(ValueError, match=r"is a TorchScript program.* torch.save\(torch.jit.load\('ViT-B-32.pt'"):
            read(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_torch_file_that_ends_early(self, tmp_path: Path, legacy: bool) -> None:
        """Half of a file, in either format of torch, is called not whole."""
        path = tmp_path / "model.pt"
        torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(ValueError, match="model.pt is not a whole torch file .*; download it again"):
            read(path)

    @pytest.mark.parametrize("content", ["", "<!doctype html><p>404", "version https://git-lfs.github.com/spec/v1\n"])
    @pytest.mark.parametrize("ending", ["pt", "safetensors"])
    def test_something_else_under_the_name_of_weights(self, tmp_path: Path, content: str, ending: str) -> None:
        """An empty file, a web page or a pointer of git-lfs is called not whole; nobody is told to trust it."""
        path = tmp_path / f"model.{ending}"
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"model.{ending} is not a whole \w+ file .*; download it again\.$"):
            read(path)

    def test_other_things_than_tensors(self, tmp_path: Path) -> None:
        """A list is no state."""
        torch.save([1, 2], tmp_path / "model.pt")
        with pytest.raises(ValueError, match=r"model.pt must hold tensors by name, got list; give the published file"):
            read(tmp_path / "model.pt")


class TestFill:
    def test_what_does_not_fit_is_counted_and_named(self) -> None:
        """Missing, unwanted and misshapen keys are told apart, three of each are named, and nothing is loaded."""
        network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        before = network[0].weight.clone()
        tensors = {
            "0.weight": torch.zeros(3, 2),
            "0.bias": torch.zeros(4),
            **{f"x.{i}": torch.zeros(1) for i in range(5)},
        }
        told = (
            "x.y cannot take this checkpoint: of its keys, 2 missing (1.bias, 1.weight); "
            "5 not wanted (x.0, x.1, x.2); 1 of another shape (0.bias); give the published one."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            fill("x.y", network, tensors)
        assert torch.equal(network[0].weight, before)

    def test_half_precision_becomes_the_networks(self) -> None:
        """Numbers of a file in half precision are taken over as they are, in float32."""
        network = nn.Linear(2, 1)
        fill("x", network, {"weight": torch.tensor([[0.5, 3.0]]).half(), "bias": torch.tensor([2.0]).half()})
        assert network.weight.dtype == torch.float32
        assert network(torch.ones(1, 2)).item() == 5.5


class TestPublishedReward:
    def test_a_name_with_ones_own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`NAME@PATH` loads the reward of that name from the file, so that it scores as the network saved there."""
        tiny = Hpsv2.tiny()
        torch.save({"state_dict": tiny.network.state_dict()}, tmp_path / "mine.pt")
        network = type(tiny).tiny().network
        for parameter in network.parameters():
            parameter.zero_()
        monkeypatch.setattr(Hpsv2, "build", staticmethod(lambda: network))
        monkeypatch.setattr(Hpsv2, "preprocess", tiny.preprocess)
        loaded = registry.load(f"hpsv2.v20@{tmp_path / 'mine.pt'}", device="cpu")
        images = CASE["pictures"]()[:3]
        assert torch.equal(loaded.score(images, ["a dog"] * 3).values, tiny.score(images, ["a dog"] * 3).values)
        assert loaded.spec.name == "hpsv2.v20"

    def test_a_file_that_is_no_checkpoint_is_told_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is read before the network is built, which takes a large one many seconds."""

        def refuse() -> None:
            raise AssertionError("a network was built before its weights were read")

        (tmp_path / "notpt.pt").write_text("weights")
        for name in ("hpsv2.v21", "imagereward.v1", "pickscore.v1", "aesthetic.v1_b32"):
            kind = registry.REWARDS.target(name)
            monkeypatch.setattr(kind, "build", staticmethod(refuse))
            tower = {"tower": tmp_path / "notpt.pt"} if name.startswith("aesthetic") else {}
            with pytest.raises(ValueError, match="is not a whole torch file"):
                registry.load(f"{name}@{tmp_path / 'notpt.pt'}", **tower)

    def test_a_checkpoint_of_another_network_is_told_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its keys are held against a network without memory, before the one that would take the weights is built."""
        save_file({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
        for name, missing in (("hpsv2.v21", 686), ("pickscore.v1", 910), ("imagereward.v1", 620)):
            kind, built = registry.REWARDS.target(name), []
            build = kind.build
            monkeypatch.setattr(
                kind, "build", staticmethod(lambda build=build, built=built: built.append(build()) or built[0])
            )
            with pytest.raises(
                ValueError, match=f"{name} cannot take .* {missing} missing .*; 1 not wanted .layers.0.weight"
            ):
                registry.load(f"{name}@{tmp_path / 'other.safetensors'}")
            (network,) = built
            assert {value.device.type for value in network.parameters()} == {"meta"}

    def test_a_name_with_a_file_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sentence of `find` comes through the registry."""
        monkeypatch.setattr(Hpsv2, "build", staticmethod(lambda: nn.Linear(1, 1)))
        with pytest.raises(
            ValueError, match="hpsv2.v20 needs the file HPS_v2_compressed.pt of xswu/HPSv2, got no file"
        ):
            registry.load(f"hpsv2.v20@{tmp_path / 'none.pt'}")

    def test_weights_are_frozen_and_the_network_does_not_train(self) -> None:
        """Dropout is off and no weight asks for a gradient."""
        reward = Hpsv2.of(nn.Sequential(nn.Linear(1, 1), nn.Dropout()))
        assert not reward.network.training
        assert not any(parameter.requires_grad for parameter in reward.network.parameters())

    def test_a_picture_that_cannot_be_prepared_gets_a_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where preprocessing refuses a picture it gets NaN and the reason, and its neighbours their own scores."""
        reward = Hpsv2.tiny()
        reward.preprocess = type(reward.preprocess)(32)
        images = [CASE["picture"](str(i), *size) for i, size in enumerate([(40, 50), (6500, 100), (60, 40)])]
        values, notes = reward.score(images, ["a", "b", "c"])
        assert values.isnan().tolist() == [False, True, False]
        assert notes == [
            "",
            "is cropped to its centre, so it may be at most 64 times as long as wide, got 6500x100",
            "",
        ]
        alone = reward.score(images[2:], ["c"]).values
        assert math.isclose(values[2].item(), alone.item(), abs_tol=1e-6)
