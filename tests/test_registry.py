"""Names: what is known, what a name stands for, and what an unknown one is told."""

from __future__ import annotations

import json
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rwk.adapters.pixels import Contrast, Noise
from rwk.rewards import registry
from rwk.rewards.base import Reward
from rwk.rewards.registry import REWARDS, Registry, load


class Kept(Contrast):
    """A reward that can be loaded from a folder."""

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "cpu") -> Kept:
        return cls(device=device)


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> Registry[Reward]:
    """A registry of its own, in which `kept` can be saved and loaded."""
    monkeypatch.setattr("rwk.adapters.pixels.Kept", Kept, raising=False)
    table = {"contrast": "rwk.adapters.pixels:Contrast", "kept": "rwk.adapters.pixels:Kept"}
    return Registry("reward", "rwk.rewards.base:Reward", table)


def saved(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", registry.names())
def test_a_registered_name_is_that_of_its_reward(name: str) -> None:
    """The name in the registry is the one in the spec, so that reports name what can be loaded."""
    assert REWARDS.target(name).tiny().spec.name == name


def test_names_are_sorted_and_none_is_an_expression() -> None:
    """Listing is stable, and no name needs quotes in a combination."""
    assert registry.names() == sorted(registry.names())
    assert not any(char in name for name in registry.names() for char in '+*(),"@: ')


def test_load_by_name_and_by_class() -> None:
    """A registered name and `module:Class` give the same reward, and options reach the class."""
    assert type(load("noise")) is type(load("rwk.adapters.pixels:Noise")) is Noise
    assert load("noise", device="cpu").device.type == "cpu"


def test_load_from_a_folder_and_from_home(rewards: Registry[Reward], tmp_path: Path, rwk_home: Path) -> None:
    """A saved folder loads by its path, and by its name where it lies in $RWK_HOME."""
    folder = saved(tmp_path / "a+b (1)", rwk_reward="kept")
    assert isinstance(rewards.load(str(folder)), Kept)
    saved(rwk_home / "rewards" / "custom", rwk_reward="kept")
    assert isinstance(rewards.load("custom"), Kept)
    assert rewards.kept() == ["custom"]
    assert rewards.knows("custom")
    assert rewards.knows("contrast")
    assert not rewards.knows("rwk.adapters.pixels:Noise")


def test_a_folder_of_a_name_that_is_an_expression(
    rewards: Registry[Reward], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that exists is loaded, though its name reads as a sum."""
    monkeypatch.setattr(registry, "REWARDS", rewards)
    folder = saved(tmp_path / "a+b (1)", rwk_reward="kept")
    assert isinstance(load(str(folder)), Kept)
    assert load(f'2*"{folder}"').spec.name == f'2*"{folder}"'


def test_a_registered_name_wins_over_a_folder(rewards: Registry[Reward], rwk_home: Path) -> None:
    """What is kept cannot take the place of a built-in name."""
    saved(rwk_home / "rewards" / "contrast", rwk_reward="kept")
    assert not isinstance(rewards.load("contrast"), Kept)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "is not a saved reward: .*rwk_reward"),
        ({"rwk_reward": "gone"}, "saved by reward 'gone', which is not installed"),
        ({"rwk_reward": "os:system"}, "saved by reward 'os:system', which is not installed"),
    ],
)
def test_a_folder_that_cannot_be_loaded(
    rewards: Registry[Reward], tmp_path: Path, config: dict[str, str], message: str
) -> None:
    """A folder without a name, of an unknown name, or that names code, is refused."""
    with pytest.raises(ValueError, match=message):
        rewards.load(str(saved(tmp_path / "r", **config)))


def test_a_folder_with_a_damaged_config(rewards: Registry[Reward], tmp_path: Path) -> None:
    """A config that is no JSON is refused in one sentence."""
    folder = saved(tmp_path / "r")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a saved reward"):
        rewards.load(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colourfulness", "unknown reward 'colourfulness'; did you mean colorfulness"),
        (
            "zzz",
            "unknown reward 'zzz'; `rwk list rewards` names what is known, `rwk list judges` those of two images. A",
        ),
        ("nowhere:Thing", "'nowhere:Thing' cannot be imported from nowhere:Thing: No module"),
        ("rwk.adapters.pixels:Nope", "cannot be imported .* has no attribute 'Nope'"),
        ("pathlib:Path", "must be a subclass of Reward, got .*pathlib.* from pathlib:Path"),
        ("x" * 5000, "unknown reward"),
        ("", "unknown reward ''"),
    ],
)
def test_an_unknown_name(name: str, message: str) -> None:
    """Who names a reward that is not there is told what is."""
    with pytest.raises(ValueError, match=message):
        load(name)


def test_register(rewards: Registry[Reward]) -> None:
    """A new name can be added, twice alike, but not one that is taken."""
    rewards.register("mine", "rwk.adapters.pixels:Noise")
    rewards.register("mine", "rwk.adapters.pixels:Noise")
    assert isinstance(rewards.load("mine"), Noise)
    with pytest.raises(ValueError, match="'mine' is taken by rwk.adapters.pixels:Noise, got a:B; choose another"):
        rewards.register("mine", "a:B")


def test_a_plugin_cannot_take_a_built_in_name(rewards: Registry[Reward], monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in with a built-in name is ignored, and that is said."""
    points = [EntryPoint("contrast", "a:B", "rwk.rewards"), EntryPoint("plain", "rwk.adapters.pixels:Noise", "g")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.warns(UserWarning, match="'contrast' of a plug-in is rwk's own name; a:B is ignored"):
        assert rewards.names() == ["contrast", "kept", "plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(rewards.load("contrast"), Contrast)
        assert isinstance(rewards.load("plain"), Noise)
