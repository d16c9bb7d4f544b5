"""What is said of a folder that cannot be read whole, and what is passed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwk.rewards.errors import RunFailed, reading

FOLDER = Path("some", "where")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("spec"), "it lacks 'spec'"),
        (OSError("gone"), "gone"),
        (RuntimeError("shapes differ"), "shapes differ"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_sentence(error: Exception, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{FOLDER} does not hold a whole thing: {told}$") as caught:
        with reading(FOLDER, "whole"), reading(FOLDER, "thing"):
            raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RunFailed("the hub is away"), torch.OutOfMemoryError("too large")])
def test_what_is_no_fault_of_the_folder_is_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, reading(FOLDER, "thing"):
        raise error
    assert caught.value is error
