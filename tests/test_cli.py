"""The command line: how options come from dataclasses, how commands end, and what is printed where."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rwk.cli import console, main
from rwk.cli.main import COMMANDS
from rwk.cli.options import Common, options
from rwk.rewards.devices import check_device
from rwk.rewards.errors import RunFailed

Rwk = Callable[..., Any]


@dataclass(frozen=True)
class Config:
    """Every kind of field."""

    files: tuple[str, ...] = field(metadata={"argument": True})
    name: str = field(metadata={"help": "Has to be given."})
    kind: Literal["a", "b"] = "a"
    batch_size: int = 4
    rate: float | None = None
    out: Path | None = None
    weights: tuple[float, ...] = field(default=(), metadata={"option": "--weight", "short": "-w"})
    fast: bool = True
    quiet: bool = field(default=False, metadata={"switch": True})
    mode: str = field(default="x", metadata={"choices": ("x", "y")})
    seed: int = field(default=7, metadata={"help": "Its own seed."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}.")


def called(*arguments: str) -> tuple[list[Any], Any]:
    """What a command made of `Config` is called with, and how it ended."""
    got: list[Any] = []

    @click.command()
    @options(Config)
    def command(config: Config, common: Common) -> dict[str, float]:
        got.extend([config, common])
        print("a library prints")
        return {"x": math.nan}

    return got, CliRunner().invoke(command, arguments)


def test_options_come_from_a_dataclass() -> None:
    """Every field is an option of its type; what is not given has the field's default."""
    got, _ = called("f", "g", "--name", "n")
    assert got == [Config(("f", "g"), "n"), Common(seed=7)]
    given = "f --name n --kind b --batch-size 2 --rate 0.5 --out o -w 1 --weight 2 --no-fast --quiet --mode y --seed 3"
    got, _ = called(*given.split(), "--device", "cpu:0", "--json")
    made = Config(("f",), "n", "b", 2, 0.5, Path("o"), (1.0, 2.0), fast=False, quiet=True, mode="y", seed=3)
    assert got == [made, Common(seed=3, device="cpu:0", json=True)]


@pytest.mark.parametrize(
    "wrong", ["--batch-size 0", "--batch-size x", "--kind c", "--mode z", "--no-quiet", "--weight w", "--nonsense"]
)
def test_a_value_that_does_not_fit_is_a_usage_error(wrong: str) -> None:
    """What neither click nor the dataclass takes ends with exit code 2 before the command runs."""
    got, ended = called("f", "--name", "n", *wrong.split())
    assert (got, ended.exit_code) == ([], 2)


def test_json_is_all_that_is_on_stdout() -> None:
    """With `--json` stdout holds the document alone, with null for NaN; what else is printed goes to stderr."""
    _, ended = called("f", "--name", "n", "--json")
    assert json.loads(ended.stdout) == {"x": None}
    assert ended.stderr == "a library prints\n"
    _, ended = called("f", "--name", "n")
    assert ended.stdout == "a library prints\n"


def test_a_field_that_no_option_can_hold_is_refused() -> None:
    """A config with a field of another type is a programmer's error, found when the command is made."""
    odd = dataclasses.make_dataclass("odd", [("table", dict[str, int])], frozen=True)
    with pytest.raises(TypeError, match="table has type"):
        options(odd)(lambda: None)


def test_help_loads_no_torch() -> None:
    """`rwk --help` and the help of every command come without torch or anything else that is heavy."""
    code = """
import sys
from rwk.cli.main import COMMANDS, main
for arguments in [["--help"], *([name, "--help"] for name in COMMANDS)]:
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 0, arguments
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "PIL", "rich", "transformers"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_what_is_common(rwk: Rwk, name: str) -> None:
    """Every command takes --seed, --device and --json."""
    shown = rwk(name, "--help")
    assert shown.code == 0
    assert all(option in shown.out for option in ("--seed", "--device", "--json"))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("the call was wrong.\nVery."), 2, "rwk: the call was wrong. Very.\n"),
        (FileNotFoundError(2, "?", "x"), 2, "rwk: x: there is no such file or folder; correct the path.\n"),
        (IsADirectoryError(21, "?", "x"), 2, "rwk: x: a file is needed, got a folder; name a file.\n"),
        (
            PermissionError(13, "?", "x"),
            2,
            "rwk: x: permission is denied to this user; change the permissions, or name another path.\n",
        ),
        (RunFailed("it went out."), 1, "rwk: it went out.\n"),
        (OSError(28, "No space left", "x"), 1, "rwk: OSError: x: No space left. (RWK_TRACEBACK=1 shows where)\n"),
        (KeyError("x"), 1, "rwk: KeyError: 'x' (RWK_TRACEBACK=1 shows where)\n"),
        (KeyboardInterrupt(), 130, "rwk: interrupted.\n"),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    rwk: Rwk, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    """2 for a wrong call, 1 for a failed run, 130 for an interrupt; one line on stderr, a traceback on demand."""

    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(main.rwk, "get_command", lambda ctx, name: command)
    ended = rwk("list")
    assert (ended.code, ended.out, ended.err.lstrip("\n")) == (code, "", said)
    monkeypatch.setenv("RWK_TRACEBACK", "1")
    ended = rwk("list")
    assert ended.code == code
    assert "Traceback" in ended.err
    assert ended.err.endswith(said)


def test_an_unknown_command_is_guessed(rwk: Rwk) -> None:
    """A misspelt command is answered with the one that was meant."""
    ended = rwk("scoer")
    assert (ended.code, ended.out) == (2, "")
    assert "no command 'scoer'; did you mean score?" in ended.err
    assert "there are score, " in rwk("xyz").err


def test_no_command_shows_the_help(rwk: Rwk) -> None:
    """`rwk` alone shows the help on stderr and ends as a wrong call."""
    ended = rwk()
    assert (ended.code, ended.out) == (2, "")
    assert "Commands:" in ended.err


def test_rwk_is_a_module_too() -> None:
    """`python -m rwk.cli` is rwk, which `accelerate launch` needs."""
    done = subprocess.run([sys.executable, "-m", "rwk.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rwk 0.")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """Where nobody reads what is printed, as in `rwk list | head -1`, the command ends quietly with 1."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rwk.cli", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_only_the_first_process_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the processes of a launcher the first one prints."""
    for rank, expected in (("1", ""), ("0", "shown\n{}\n")):
        monkeypatch.setenv("RANK", rank)
        console.show("shown")
        console.emit({})
        console.note("noted")
        printed = capsys.readouterr()
        assert printed.out == expected
        assert printed.err == ("rwk: noted\n" if expected else "")


def test_progress_is_told_in_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal, a run that is not over soon says now and then how far it is."""
    with console.progress("soon", 3) as advance:
        advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(console, "LINE_SECONDS", 0.01)
    told = ""
    with console.progress("scoring", 4) as advance:
        advance(1)
        while told.count("\n") < 2:
            told += capsys.readouterr().err
    assert told.startswith("rwk: scoring: 1 of 4, ")
    assert console.progress_line("loading", 0, None, 3) == "loading: 3 s so far"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the machine has the device")
@pytest.mark.parametrize("device", ["cuda", "cuda:9", "mps", "meta", "banana", ""])
def test_a_device_that_is_not_there_is_one_sentence(rwk: Rwk, device: str) -> None:
    """A device that torch does not know or see is refused before the command runs, with exit code 2."""
    said = f"--device must be cpu, as torch {torch.__version__} sees nothing else here, got {device!r}; for a GPU"
    got, ended = called("f", "--name", "n", "--device", device)
    assert (got, ended.exit_code) == ([], 2)
    Image.new("RGB", (8, 8), "red").save("x.png")
    for command in (["score", "x.png", "-r", "colorfulness"], ["list"], ["info", "colorfulness"]):
        refused = rwk(*command, "--device", device)
        assert (refused.code, refused.out) == (2, "")
        assert said in refused.err
        assert refused.err.count("\n") == 1


def test_the_devices_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with two GPUs each can be named, and a third is refused with those that there are."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    for device in ("cpu", "cpu:0", "cuda", "cuda:0", "cuda:1"):
        check_device(device)
    for device in ("cuda:2", "mps", "cpu:1"):
        with pytest.raises(ValueError, match=rf"--device must be cpu or one of cuda:0, cuda:1, .*, got '{device}'\."):
            check_device(device)


def test_warnings_of_rwk_are_notes(rwk: Rwk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rwk warns of is one note, however often it is said; a warning of another library stays what it is."""

    @click.command()
    def command() -> None:
        for name in ("a", "a", "b"):
            warnings.warn_explicit(f"{name} is cut.", UserWarning, str(Path(console.__file__)), 1)
        warnings.warn_explicit("not ours.", UserWarning, click.__file__, 1)

    monkeypatch.setattr(main.rwk, "get_command", lambda ctx, name: command)
    before = warnings.showwarning
    with pytest.warns(UserWarning, match="not ours") as left:
        ended = rwk("list")
    assert ended.err == "rwk: a is cut.\nrwk: b is cut.\n"
    assert len(left) == 1
    assert warnings.showwarning is before


def test_list_shows_what_is_registered_and_kept(rwk: Rwk, rwk_home: Path) -> None:
    """`rwk list` knows specs, kept rewards, and what is wrong with a broken one."""
    for name, held in (("mine", {"rwk_reward": "contrast", "spec": {"unit": "my unit"}}), ("odd", {})):
        (rwk_home / "rewards" / name).mkdir(parents=True)
        (rwk_home / "rewards" / name / "config.json").write_text(json.dumps(held))
    found = {each["name"]: each for each in json.loads(rwk("list", "rewards", "--json").out)["rewards"]}
    assert found["colorfulness"]["unit"] == "M3, in 8-bit steps"
    assert found["colorfulness"]["kept"] is False
    assert (found["mine"]["unit"], found["mine"]["high"], found["mine"]["kept"]) == ("my unit", 0.5, True)
    assert "odd is not a saved reward: its config.json holds no readable rwk_reward" in found["odd"]["fault"]
    shown = rwk("list")
    assert shown.code == 0
    assert all(word in shown.out for word in ("mine (kept)", "my unit", "shapes.llama", "doi:10.1117/12.477378"))


def listed(rwk: Rwk, *arguments: str) -> list[str]:
    """Names that `rwk list rewards` gives."""
    ended = rwk("list", "rewards", *arguments, "--json")
    assert ended.code == 0, ended.err
    return [each["name"] for each in json.loads(ended.out)["rewards"]]


def test_list_filters(rwk: Rwk) -> None:
    """Each filter takes some and leaves some, and two filters take what both take."""
    every = set(listed(rwk))
    asked, free = set(listed(rwk, "--needs-prompt")), set(listed(rwk, "--no-prompt"))
    assert asked | free == every
    assert not asked & free
    assert "hpsv2.v21" in asked
    assert "aesthetic.v2" in free
    steep = set(listed(rwk, "--differentiable"))
    assert "hpsv2.v21" in steep
    assert not {"compressibility.jpeg", "unifiedreward.pointwise"} & steep
    assert set(listed(rwk, "--differentiable", "--no-prompt")) == steep & free
    assert "pickscore.v1" in listed(rwk, "--licence", "mit")
    assert "hpsv2.v21" not in listed(rwk, "--licence", "mit")
    shown = rwk("list", "--differentiable").out
    assert "hpsv2.v21" in shown
    assert "shapes.llama" not in shown


def test_list_by_size(rwk: Rwk) -> None:
    """Weights up to a size, those that need none among them; what has no known size is left out, and named."""
    assert {"contrast", "shapes.clip"} <= set(listed(rwk, "--max-megabytes", "3"))
    small = set(listed(rwk, "--max-megabytes", "1715"))
    assert "clipscore.l14" in small
    assert "aesthetic.v2" in small  # 4 for the head, 1711 for the tower
    assert "aesthetic.v2" not in listed(rwk, "--max-megabytes", "1714")
    assert not {"hpsv2.v21", "judge.yes", "dual_encoder"} & small
    ended = rwk("list", "--names", "--max-megabytes", "8")
    names = ended.out.split()
    assert {"contrast", "shapes.llama"} <= set(names)
    assert "hpsv2.v21" not in names
    told = [line for line in ended.err.splitlines() if "nothing says how large" in line]
    assert [line.split()[2] for line in told] == ["rewards", "generators", "judges"]
    assert "judge.yes, " in told[0]
    assert "pair.quality, " in told[2]
    assert not any(name in line for line in told for name in ("hpsv2.v21", "contrast"))
    assert "nothing says how large" not in rwk("list", "judges", "--licence", "that of the reward").err
    told = rwk("list", "rewards", "--names", "--max-megabytes", "8", "--no-prompt").err
    assert "judge.yes, " not in told
    assert "timm_head" in told


def test_list_filters_leave_out_what_is_broken(rwk: Rwk, rwk_home: Path) -> None:
    """A broken name does not hide the others: it is left out with a note."""
    (rwk_home / "rewards" / "odd").mkdir(parents=True)
    (rwk_home / "rewards" / "odd" / "config.json").write_text("{")
    ended = rwk("list", "rewards", "--no-prompt", "--names")
    assert ended.code == 0
    assert "contrast" in ended.out.split()
    assert "odd" not in ended.out.split()
    assert "rwk: odd is left out, as nothing is known of it: ValueError: " in ended.err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--needs-prompt", "--no-prompt"], "leave nothing over"),
        (["generators", "--differentiable"], "are of rewards"),
        (["--max-megabytes", "-1"], "must be at least 0, got -1"),
    ],
)
def test_list_filters_that_make_no_sense(rwk: Rwk, wrong: list[str], said: str) -> None:
    """Filters that exclude each other, do not apply, or are negative are usage errors."""
    ended = rwk("list", *wrong)
    assert ended.code == 2
    assert said in ended.err


def test_list_of_names_imports_no_adapter() -> None:
    """`rwk list --names` imports none of what it names."""
    code = """
import sys
from rwk.cli.main import main
try:
    main(["list", "--names"])
except SystemExit as ended:
    assert ended.code == 0
print([name for name in sys.modules if name.startswith("rwk.adapters.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert {"colorfulness", "shapes.llama"} <= set(lines)
