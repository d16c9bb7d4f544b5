"""Names of combinations: how they are read and written, and what a slip in one is told."""

from __future__ import annotations

import pytest
from PIL import Image
from torch import Tensor, zeros

from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.combine import number
from rwk.rewards.expression import DEEPEST, parse
from rwk.rewards.registry import load


class Given(Reward):
    """Stands for a reward that a name was loaded as."""

    spec = RewardSpec("given", "points", 0, 1, "n/a", "this test", needs_prompt=False)

    @classmethod
    def tiny(cls) -> Reward:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        return zeros(len(images))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("colorfulness + 2*sharpness", "colorfulness+2*sharpness"),
        ("0.5*colorfulness+2.0*sharpness", "0.5*colorfulness+2*sharpness"),
        ("-1e-3 * noise", "-0.001*noise"),
        ("2*(contrast+exposure)+-.5*noise", "2*(contrast+exposure)+-0.5*noise"),
        ("1e16*noise", "1e+16*noise"),
        ("z( noise , sd=3, mean=-1e2 )", "z(noise,mean=-100,sd=3)"),
        (
            "min(z(noise,mean=0,sd=1), z(contrast,mean=0,sd=1))",
            "min(z(noise,mean=0,sd=1),z(contrast,mean=0,sd=1))",
        ),
        (
            "0.5*lcb(z(noise,mean=0,sd=1),z(contrast,mean=0,sd=1))+2*compressibility.jpeg",
            "0.5*lcb(z(noise,mean=0,sd=1),z(contrast,mean=0,sd=1),k=1)+2*compressibility.jpeg",
        ),
        ('"noise"+rwk.adapters.pixels:Contrast', "noise+rwk.adapters.pixels:Contrast"),
        ("(noise)", "noise"),
        ("1*noise", "noise"),
        ("2*shapes.verifier+noise", "2*shapes.verifier+noise"),
    ],
)
def test_names_are_read_and_written(text: str, name: str) -> None:
    """An expression loads, its name is its normal form, and that loads as the same reward."""
    reward = load(text)
    assert reward.spec.name == name
    assert load(name).spec == reward.spec
    assert load(name).parts().keys() == reward.parts().keys()


@pytest.mark.parametrize(
    "name",
    ["custom", "./runs/my-reward_2", "module.path:Class", "hpsv2.v21@/data/w.pt", "http://host:8000/a", "C:\\r", "é"],
)
def test_every_kind_of_name_can_be_a_part(name: str) -> None:
    """Folders, classes, weights and addresses stand in an expression as they are."""
    asked = []

    def loading(part: str) -> Reward:
        asked.append(part)
        return Given()

    assert parse(f"2*{name} + lcb({name},b,k=0.5)", loading).spec.name == f"2*{name}+lcb({name},b,k=0.5)"
    assert asked == [name, "b"]  # each once


@pytest.mark.parametrize("name", ["runs/a+b", "my (2)", "a,b", "2*3"])
def test_names_that_hold_operators_stand_in_quotes(name: str) -> None:
    """A folder with a plus or a bracket in its name is quoted, and is written so again."""
    reward = parse(f'3*"{name}"', lambda part: Given())
    assert list(reward.parts()) == [name]
    assert reward.spec.name == f'3*"{name}"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise+", "needs a name at character 7, got its end; write 0.5"),
        ("2*", "needs a name at character 3, got its end"),
        ("noise*2", r"needs \+ or the end at character 6, got '\*2'"),
        ("min(noise,contrast", r"needs \) at character 19, got its end"),
        ("max(noise,contrast)", "needs min, lcb, z or permuted before a bracket at character 1, got 'max"),
        ("min(noise,,contrast)", "needs a name at character 11, got ',contrast"),
        ("noise)", r"needs \+ or the end at character 6, got '\)'"),
        ('"noise', "needs a name at character 1"),
        ("noise,contrast", r"needs \+ or the end at character 6"),
        ("z(noise,mean=1)", "z in reward .* takes mean and sd, got mean"),
        ("min(noise,contrast,k=1)", "min in reward .* takes no option, got k"),
        ("lcb(noise,contrast,sd=1)", "lcb in reward .* takes k, got sd"),
        ("noise+noise", "names noise twice"),
        ("min(noise,noise)", "names noise twice"),
        ("nois+contrast", "unknown reward 'nois'; did you mean noise"),
        ("min(noise,contrast)", r"parts of one unit, got .* standardise each as z\(NAME,mean=M,sd=S\)"),
        ("(" * 5000, f"at most {DEEPEST - 1} brackets"),
        ("+".join(["a" * 200] * 40), "names a|unknown reward"),
    ],
)
def test_what_is_no_expression(text: str, message: str) -> None:
    """A slip in an expression is shown where it is."""
    with pytest.raises(ValueError, match=message):
        load(text)


def test_nothing_is_loaded_before_the_whole_was_read() -> None:
    """A slip at the end is found before the weights of the first part are read."""
    asked: list[str] = []
    with pytest.raises(ValueError, match="needs a name"):
        parse("big+", lambda name: asked.append(name) or Given())  # type: ignore[func-returns-value]
    assert asked == []


def test_an_expression_is_never_run() -> None:
    """Code in a name stays a name."""
    with pytest.raises(ValueError, match="needs min, lcb, z or permuted before a bracket"):
        load("2*__import__('os').system('true')")


def test_options_reach_every_part() -> None:
    """The device is that of all parts."""
    whole = load("noise+2*contrast", device="meta")
    assert {str(part.device) for part in whole.parts().values()} == {"meta"}


@pytest.mark.parametrize("value", [1.0, 0.5, -2.0, 1e-5, 1e16, 1 / 3, 123456789.125, 5e-324])
def test_numbers_read_back(value: float) -> None:
    """A number is written so that it is read as the same number."""
    assert float(number(value)) == value
    assert not number(value).endswith(".0")
