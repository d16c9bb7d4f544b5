"""What the hub refuses is told for what it is: a wrong revision is no missing network."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

NO_REVISION = "with a network, name a revision that the repository has, got 'v9'; without"
ANSWERS = {
    "yuvalkirstain": ("pickscore.v1#v9", 404, "RevisionNotFound", NO_REVISION),
    "openai": ("transformers:openai/clip-vit-base-patch32#v9", 404, "RevisionNotFound", NO_REVISION),
    "Qwen": ("judge.yes_no#v9", 404, "RevisionNotFound", NO_REVISION),
    "xswu": ("hpsv2.v21#v9", 404, "EntryNotFound", "name a revision that has the file, got 'v9'; without"),
    "THUDM": ("imagereward.v1", 403, "GatedRepo", "accept the repository's terms on the hub and log in by"),
    "RE-N-Y": ("mps.overall", 401, "RepoNotFound", "see that the hub has the repository; log in by"),
    "IDEA-Research": ("grounding_dino.t2i_r1", 400, "", "with a network, unset HF_HUB_OFFLINE and run again; without"),
}
"""Of each owner of repositories: a reward that asks, status and code of the hub's answer, and what a user is told."""
ASK = """
import sys
from rwk.rewards.registry import load
for name in sys.argv[1:]:
    try:
        load(name)
    except Exception as error:
        print(f"{name}: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """Answers each owner's repositories as `ANSWERS` says, in the hub's own headers."""

    def do_HEAD(self) -> None:
        owner = next(part for part in self.path.split("/") if part in ANSWERS)
        _, status, code, _ = ANSWERS[owner]
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", code), ("Content-Length", "0")):
            self.send_header(header, value)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub on this machine that has nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refusal_is_told_for_what_it_is(hub: str, tmp_path: Path) -> None:
    """A revision or file that is not there, terms to accept, a private repository; other faults are of the network."""
    there = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", ASK, *(name for name, *_ in ANSWERS.values())]
    ended = subprocess.run(command, env=os.environ | there, capture_output=True, text=True, timeout=300, check=True)
    told = dict(line.split(": ", 1) for line in ended.stdout.splitlines())
    for name, _, _, remedy in ANSWERS.values():
        assert remedy in told[name], told[name]


@pytest.mark.parametrize("name", ["transformers:/no/folder", "judge.yes_no@/no/folder"])
def test_a_folder_that_is_not_there_is_no_repository(name: str) -> None:
    """A path that leads nowhere is not told as a matter of the network."""
    with pytest.raises(RunFailed, match="name a repository as OWNER/NAME, or a folder that is there; without"):
        load(name)
