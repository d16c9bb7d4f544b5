"""What holds for every test: offline, its own $RWK_HOME, one copy of every module."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before any test module is imported, as libraries read these once; subprocesses inherit them.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
    "COLUMNS": "240",  # pytest-xdist sets 80
    "RWK_HOME": tempfile.mkdtemp(prefix="rwk-home-"),
}

import pytest  # noqa: E402
import torch  # noqa: E402

SESSION_HOME = Path(os.environ["RWK_HOME"])
COUNT = itertools.count()
atexit.register(shutil.rmtree, SESSION_HOME, ignore_errors=True)
FOLDERS = ("rewards", "adapters", "calibration", "policy_opt", "cli")


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def one_copy_of_every_module() -> Iterator[None]:
    """Fails the session where a folder was imported beside its `rwk.` name: classes and registries would be double."""
    yield
    twice = [name for name in sys.modules if name.partition(".")[0] in FOLDERS]
    assert not twice, f"imported without the prefix rwk.: {twice}"


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """As many threads as OMP_NUM_THREADS says, else the cores this process may use, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(4, cores)))


@pytest.fixture(scope="session")
def imported() -> Iterator[list[int]]:
    """How many modules there were when `imports_are_no_garbage` last looked."""
    yield [0]
    gc.unfreeze()


@pytest.fixture(autouse=True)
def imports_are_no_garbage(imported: list[int]) -> None:
    """What imports made is not searched again whenever a trainer collects garbage, which is twice in its life."""
    if len(sys.modules) > imported[-1] + 50:
        gc.collect()
        gc.freeze()
        imported.append(len(sys.modules))


@pytest.fixture(autouse=True)
def rwk_home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """An $RWK_HOME of its own for each test, which does not exist yet."""
    home = SESSION_HOME / str(next(COUNT))
    monkeypatch.setenv("RWK_HOME", str(home))
    return home


@pytest.fixture
def rwk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the command line in this process, in the folder `tmp_path`."""
    from rwk.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def seen(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `score_plug_in:Class` a name of a reward, in subprocesses too; the file tells what its rewards scored."""
    folder = tmp_path_factory.mktemp("plug-in")
    shutil.copy(Path(__file__).with_name("score_plug_in.py"), folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    return folder / "seen"
