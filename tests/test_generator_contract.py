"""Every registered generator keeps the generator contract, on its tiny network; of equals one is checked wholly."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import contract
from rwk.policy_opt.contract import CHECKS, Check
from rwk.policy_opt.generator import GENERATORS, Generator

NAMES = GENERATORS.names()
VARIANTS = {
    "janus.pro_7b": "janus.pro_1b",
    **{f"llamagen.c2i_{size}": "llamagen.c2i_b_256" for size in ("b_384", "l_256", "l_384", "xl_384")},
    **{f"llamagen.c2i_{size}": "llamagen.c2i_b_256" for size in ("xxl_384", "3b_384")},
    "llamagen.t2i_xl_512": "llamagen.t2i_xl_256",
    "showo.clip_256": "showo.256",
    **{f"showo.{kind}": "showo.512" for kind in ("512_base", "clip_512")},
    **{f"simplear.{kind}": "simplear.sft_0_5b" for kind in ("rl_0_5b", "rl_1_5b", "sft_1_5b")},
    **{f"var.{kind}": "var.d16" for kind in ("d20", "d24", "d30")},
}
"""A generator that is another but for its name, its weights and how large they are -> that other, which is checked."""
OWN_CHECKS = (contract.check_spec_is_complete, contract.check_saves_and_loads)
"""What is checked of a variant too, since it depends on its name: its spec, and that it is found again by its name."""
APART = {"spec", "hub", "origin", "sizes", "vq_sizes", "_abc_impl"}
"""What variants may differ in as classes; what comes of it in a network is compared."""
XFAIL: dict[tuple[str, str], str] = {}
"""(generator, check): why it is known to fail."""


@functools.cache
def tiny(name: str) -> Generator:
    return GENERATORS.target(name).tiny()


def cases() -> list[object]:
    """Every generator with every check; known failures are strict."""
    return [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.__name__}",
            marks=[pytest.mark.xfail(reason=XFAIL[name, check.__name__], strict=True)]
            if (name, check.__name__) in XFAIL
            else [],
        )
        for name in NAMES
        for check in (OWN_CHECKS if name in VARIANTS else CHECKS)
    ]


@pytest.mark.parametrize(("name", "check"), cases())
def test_generator_keeps(name: str, check: Check) -> None:
    """The check holds for the generator."""
    check(tiny(name))


def differences(one: Generator, other: Generator) -> list[str]:
    """What two tiny generators differ in that any check could see, but for names, licence and source."""
    kinds = [type(one), type(other)]
    found = []
    for name in {*dir(kinds[0]), *dir(kinds[1])} - APART:
        first, second = (inspect.getattr_static(kind, name, None) for kind in kinds)
        if (name == "__init__" or not name.startswith("__")) and first is not second and first != second:
            found.append(name)
    specs = [replace(generator.spec, name="", licence="", source="") for generator in (one, other)]
    found += ["spec"] if specs[0] != specs[1] else []
    held = [{name: value for name, value in vars(each).items() if name != "spec"} for each in (one, other)]
    for name in {*held[0], *held[1]}:
        values = [part.get(name) for part in held]
        if isinstance(values[0], nn.Module) and isinstance(values[1], nn.Module):
            states = [value.state_dict() for value in values]
            same = str(values[0]) == str(values[1]) and states[0].keys() == states[1].keys()
            found += [] if same and all(torch.equal(states[0][key], states[1][key]) for key in states[0]) else [name]
        elif type(values[0]) is not type(values[1]):
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_another_generator_but_for_its_weights(name: str) -> None:
    """The same functions and settings on an equal network, so that what the checks say of one they say of the other."""
    assert VARIANTS[name] not in VARIANTS
    fresh = [GENERATORS.target(each).tiny() for each in (name, VARIANTS[name])]  # which keep no answers of other tests
    assert differences(*fresh) == []


def test_differences_are_seen() -> None:
    """Another function, another setting, another spec, another weight, another layer."""
    usual = ShapesLlama.tiny()

    class Other(ShapesLlama):
        max_rows = 7

        def decode(self, tokens: Tensor) -> list[Image.Image]:
            return super().decode(tokens)

    assert differences(Other.tiny(), usual) == ["decode", "max_rows"]
    moved = ShapesLlama.tiny()
    with torch.no_grad():
        next(moved.module.parameters())[0, 0] += 1
    moved.spec = replace(moved.spec, tokens=63)
    assert differences(moved, usual) == ["module", "spec"]
    moved = ShapesLlama.tiny()
    moved.vq = nn.Sequential(moved.vq, nn.Dropout())
    assert differences(moved, usual) == ["vq"]


def test_suite_is_not_empty() -> None:
    """The built-in generator and 21 checks are there, each check once and told in a sentence."""
    assert "shapes.llama" in NAMES
    assert len(CHECKS) == len({check.__name__ for check in CHECKS}) == 22
    assert all((check.__doc__ or "").rstrip().endswith(".") for check in CHECKS)


def test_known_failures_exist() -> None:
    """Every known failure names a generator and a check that there are."""
    assert set(XFAIL) <= {(name, check.__name__) for name in NAMES for check in CHECKS}


def test_check_generator_names_every_broken_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check_generator` runs all checks and tells each that failed or crashed, with what it saw."""

    def check_that_fails(generator: Generator) -> None:
        raise AssertionError(f"{generator.spec.tokens} tokens")

    def check_that_crashes(generator: Generator) -> None:
        raise KeyError("codes")

    checks = (check_that_fails, contract.check_spec_is_complete, check_that_crashes)
    monkeypatch.setattr(contract, "CHECKS", checks)
    with pytest.raises(AssertionError) as caught:
        contract.check_generator(tiny("shapes.llama"))
    assert str(caught.value).splitlines() == [
        "shapes.llama breaks the generator contract:",
        "check_that_fails: AssertionError: 64 tokens",
        "check_that_crashes: KeyError: 'codes'",
    ]
