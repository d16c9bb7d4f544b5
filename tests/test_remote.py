"""A reward by its address: the scores of the server to the bit, patience while it is away, and never a made-up 0."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.pixels import Contrast, Sharpness
from rwk.adapters.shapes_verifier import Verifier
from rwk.rewards import remote
from rwk.rewards.base import RewardSpec
from rwk.rewards.contract import check_reward
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load
from rwk.rewards.remote import RemoteReward
from rwk.rewards.score_request import Limits
from rwk.rewards.server import Server

SPEC = {"name": "r", "unit": "u", "low": 0, "high": None, "licence": "n/a", "source": "s"}
SPEC |= {"needs_prompt": False, "deterministic": True, "differentiable": False}
DESCRIBED = {"rewards": [SPEC], "limits": {"body": 10**6, "images": 4, "pixels": 10**6, "prompt": 10}}
SCORED = {"reward": "r", "values": [0.1], "notes": [""]}
Say = Callable[..., str]


def noise(side: int, sigma: float) -> Image.Image:
    return Image.effect_noise((side, side), sigma).convert("RGB")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    rewards = {"sharpness": Sharpness(), "contrast": Contrast(), "shapes.verifier": Verifier(), "a/b +é": Contrast()}
    with Server(rewards, limits=Limits(body=40_000, images=3, pixels=20_000)).running() as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    return waited


@pytest.fixture
def script() -> Iterator[Say]:
    """Starts a server that gives these answers, one a request, each a status with a document or text; gives its URL."""
    answers: list[tuple[int, Any]] = []

    class Scripted(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, document = answers.pop(0)
            if not status:
                return  # closes the connection without a word
            text = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def say(*script: tuple[int, Any]) -> str:
        answers[:] = script
        return f"http://127.0.0.1:{listening.server_address[1]}/r"

    yield say
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_the_contract_holds() -> None:
    """A reward behind a server passes the contract suite as it does in this process."""
    check_reward(RemoteReward.tiny())


def test_the_same_scores(server: Server) -> None:
    """Scores are those of the reward itself, bit for bit, though they take several requests; so is the spec."""
    images = [noise(side, sigma) for side, sigma in ((20, 9), (70, 50), (90, 99), (30, 5), (9, 1), (60, 80), (50, 3))]
    found = load(f"{server.url}/sharpness", device="cpu")
    assert torch.equal(found.score(images).values, Sharpness().score(images).values)
    here = Sharpness().spec
    assert found.spec == RewardSpec(
        f"{server.url}/sharpness", here.unit, here.low, here.high, here.licence, here.source, needs_prompt=False
    )
    assert server.requests > 2


def test_prompts_and_notes_go_along(server: Server) -> None:
    """Prompts in any script reach the reward, each with its image, and NaN and notes come back as they are."""
    images, prompts = [noise(32, 40)] * 5, ["a red circle", 'käse "x"\n', "", "猫", "two blue squares"]
    found, here = load(f"{server.url}/shapes.verifier").score(images, prompts), Verifier().score(images, prompts)
    assert found.values.tolist() == pytest.approx(here.values.tolist(), nan_ok=True)
    assert found.notes == here.notes
    assert here.values.isnan().any()
    with pytest.raises(ValueError, match="/shapes.verifier needs one prompt per image, got 2 images and 0 prompts"):
        load(f"{server.url}/shapes.verifier").score(images[:2])


def test_an_image_that_no_request_can_hold(server: Server) -> None:
    """An image beyond the server's limits is NaN with a note; its neighbours are scored."""
    dense = Image.frombytes("RGB", (110, 110), random.Random(0).randbytes(110 * 110 * 3))  # PNG cannot shrink it
    scores = load(f"{server.url}/contrast").score([noise(20, 9), noise(150, 9), dense, noise(20, 50)])
    assert scores.values.isnan().tolist() == [False, True, True, False]
    assert scores.notes[1].startswith("more than the server takes: 150x150 pixels")
    assert scores.notes[2].startswith("more than the server takes: 110x110 pixels")


def test_names(server: Server) -> None:
    """An address works in combinations, and any name can be quoted in it."""
    image = [noise(20, 30)]
    both = load(f"0.5*{server.url}/contrast+2*sharpness").score(image).values
    assert both.item() == pytest.approx(
        (0.5 * Contrast().score(image).values + 2 * Sharpness().score(image).values).item()
    )
    assert load(f"{server.url}/a%2Fb%20%2B%C3%A9").score(image).values == Contrast().score(image).values
    with pytest.raises(ValueError, match=r"/gone is not served; the server has sharpness, contrast, .*, a/b%20%2B"):
        load(f"{server.url}/gone")


@pytest.mark.parametrize(
    "url", ["http://", "http://host", "http://host:8000/", "http://me:pw@host/r", "http://host/r?x=1"]
)
def test_what_is_no_address_of_a_reward(url: str) -> None:
    """An address without a reward, with a password or a query is refused before anything is sent."""
    with pytest.raises(ValueError, match="must be http://HOST:PORT/NAME, got 'http://"):
        load(url)


def test_a_server_that_comes_back(script: Say, pauses: list[float]) -> None:
    """Lost connections and 503 are tried again, each after a longer pause, and the scores then are right."""
    url = script((200, DESCRIBED), (0, ""), (503, {"error": "busy."}), (502, b"<html>"), (200, SCORED))
    assert load(url).score([noise(8, 9)]).values.tolist() == pytest.approx([0.1])
    assert pauses == [0.25, 0.5, 1.0]


def test_a_server_that_stays_away(pauses: list[float]) -> None:
    """Nobody at the address is one sentence after all tries, with pauses of 8 seconds at most."""
    with pytest.raises(RunFailed, match=r"/r gave no answer in 8 tries, the last ConnectionRefusedError: .*rwk serve"):
        load("http://127.0.0.1:9/r", tries=8)
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 8]


def test_a_server_that_is_busy(script: Say, pauses: list[float]) -> None:
    """503 to the last fails the run with what the server said."""
    reward = load(script((200, DESCRIBED), *[(503, {"error": "shutting down."})] * 3), tries=3)
    with pytest.raises(RunFailed, match="no answer in 3 tries, the last HTTP 503: shutting down"):
        reward.score([noise(8, 9)])


def test_a_server_that_hangs(pauses: list[float]) -> None:
    """A server that takes the request and says nothing is given up after the time-out."""
    with Server({"contrast": Contrast()}) as listening:  # listens, and is never started
        url = f"{listening.url}/contrast"
        with pytest.raises(RunFailed, match="gave no answer in 2 tries, the last TimeoutError: timed out"):
            load(url, timeout=0.1, tries=2)
        listening.batchers["contrast"].close()


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (500, {"error": "r failed: ArithmeticError: x"}, "answered HTTP 500: r failed: ArithmeticError: x"),
        (404, b"<html>", "answered HTTP 404: b'<html>'"),
        (302, b"", "answered HTTP 302: b''"),
        (200, b"<html>", "answered b'<html>', which is no JSON"),
        (200, {"values": [1.0]}, "must answer with 1 values and notes"),
        (200, {"values": [1.0, 2.0], "notes": ["", ""]}, "must answer with 1 values and notes"),
        (200, {"values": ["1"], "notes": [""]}, "must answer with 1 values and notes"),
        (200, {"values": [True], "notes": [""]}, "must answer with 1 values and notes"),
        (200, [], "must answer with 1 values and notes"),
    ],
)
def test_an_answer_that_is_no_score(script: Say, status: int, answer: Any, message: str) -> None:
    """Whatever is no score fails the run at once, in one sentence; it is never read as 0."""
    reward = load(script((200, DESCRIBED), (status, answer)))
    with pytest.raises(RunFailed) as failed:
        reward.score([noise(8, 9)])
    assert message in str(failed.value)


def test_what_is_no_server_of_rewards(script: Say) -> None:
    """Another server at the address is told from one of rwk's."""
    with pytest.raises(RunFailed, match="answered what no rwk server says: KeyError"):
        load(script((200, {"hello": 1})))


def test_null_without_a_note(script: Say) -> None:
    """A null is NaN and has a note, whatever the server left out."""
    scores = load(script((200, DESCRIBED), (200, {"values": [None], "notes": [""]}))).score([noise(8, 9)])
    assert math.isnan(scores.values.item())
    assert scores.notes == ["no score, and no reason given"]
