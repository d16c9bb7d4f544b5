"""The server: right answers to many clients at once, one sentence for what it does not take, and a quiet end."""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.pixels import Contrast
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.batching import Batcher
from rwk.rewards.connection import PATHS
from rwk.rewards.errors import RunFailed
from rwk.rewards.score_request import FORMATS, Limits, Refused, parse
from rwk.rewards.server import Server

LIMITS = Limits(body=60_000, images=8, pixels=40_000, prompt=100, memory=2**22, seconds=1)
Answer = tuple[int, dict[str, Any]]


class Paired(Reward):
    """Red of the first pixel, times 1000, plus the number that is the prompt; keeps the sizes of its batches."""

    spec = RewardSpec("paired", "made up", 0, math.inf, "n/a", "tests")

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.pause = pause
        self.threads: set[int] = set()

    @classmethod
    def tiny(cls) -> Paired:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        self.batches.append(len(images))
        self.threads.add(threading.get_ident())
        time.sleep(self.pause)
        if "poison" in prompts:
            raise ArithmeticError("poisoned")
        values, notes = [], []
        for image, prompt in zip(images, prompts, strict=True):
            red: Any = image.getpixel((0, 0))
            values.append(math.nan if prompt == "nothing" else red[0] * 1000 + int(prompt))
            notes.append("nothing to see" if prompt == "nothing" else "")
        return Scores(torch.tensor(values), notes)


def png(red: int = 0, size: tuple[int, int] = (4, 4), format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, format)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG file of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def asked(images: Sequence[bytes], prompts: Sequence[str] = (), **more: Any) -> bytes:
    files = [base64.b64encode(image).decode() for image in images]
    return json.dumps({"images": files, "prompts": list(prompts), **more}).encode()


def send(
    server: Server, body: bytes, path: str = "/score", kind: str = "application/json", how: str = "POST"
) -> Answer:
    """Status and document of one request on a connection of its own."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    try:
        connection.request(how, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def raw(server: Server, sent: bytes) -> bytes:
    """All that the server says to these bytes until it ends the connection."""
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(sent)
        heard = b""
        while chunk := connection.recv(2**16):
            heard += chunk
        return heard


@pytest.fixture
def paired() -> Paired:
    return Paired()


@pytest.fixture
def server(paired: Paired) -> Iterator[Server]:
    with Server({"paired": paired, "contrast": Contrast()}, limits=LIMITS, max_batch=4).running() as running:
        yield running


def test_scores(server: Server) -> None:
    """Each image gets its own score in the order sent; null and a note where there is none or the file is broken."""
    files = [png(1), png(2), b"no image", png(3), b"", png(4, (90, 90))[:90]]
    status, answer = send(server, asked(files, ["5", "6", "7", "nothing", "8", "9"], reward="paired"))
    assert status == 200
    assert answer["reward"] == "paired"
    assert answer["values"] == [1005, 2006, None, None, None, None]
    notes = answer["notes"]
    assert notes[:2] == ["", ""]
    assert notes[2].startswith("not an image of a kind")
    assert notes[3] == "nothing to see"
    assert notes[4] == "empty"
    assert notes[5].startswith("cannot be decoded")


def test_a_form_is_read_as_json_is(server: Server) -> None:
    """Files in a form get the scores that they get in JSON; a file that holds line ends and dashes stays whole."""
    odd = png(7) + b"\r\n--bound\r\n--other\r\n\r\n"
    fields = [(b"reward", b"paired"), (b"images", odd), (b"prompts", b"1"), (b"images", png(9)), (b"prompts", b"2")]
    body = b"".join(
        b'--boundary\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n' % (name, content)
        for name, content in fields
    )
    kind = "multipart/form-data; boundary=boundary"
    assert send(server, body + b"--boundary--\r\n", kind=kind) == send(
        server, asked([odd, png(9)], ["1", "2"], reward="paired")
    )
    assert parse(body + b"--boundary--", kind, LIMITS).files[0] == odd


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_image_is_read(server: Server, format: str) -> None:
    """Every format that the refusals name can be sent."""
    _, answer = send(server, asked([png(200, format=format)], ["0"], reward="paired"))
    assert answer["values"][0] == pytest.approx(200_000, abs=2000)


def test_a_kind_that_runs_programs_is_not_read(server: Server) -> None:
    """PostScript, for which Pillow would call Ghostscript, is no image here."""
    _, answer = send(server, asked([png(1, format="EPS")], reward="contrast"))
    assert answer["values"] == [None]
    assert "not an image of a kind" in answer["notes"][0]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "must be JSON, got 0 bytes"),
        (b"\xff\xfe", 400, "must be JSON"),
        (b"[" * 50_000, 400, "must be JSON"),
        (b"[1]", 400, "must be a JSON object, got a list"),
        (b'{"image": []}', 400, "got 'image'; check its spelling"),
        (b'{"reward": 1}', 400, "reward must be a name, got a number"),
        (b'{"images": "a"}', 400, "images must be a list of strings, got a string"),
        (b'{"images": [null]}', 400, "got null at place 0"),
        (b'{"images": []}', 400, "at least one image, got none"),
        (b'{"images": ["###"]}', 400, "image 0 must be a file in base64, got 3 characters"),
        (asked([png()]), 400, "reward must be one of paired, contrast, got none"),
        (asked([png()], reward="gone"), 404, "no reward 'gone' is served here; there are paired, contrast"),
        (asked([png()] * 2, ["1"], reward="paired"), 400, "got 2 images and 1 prompts"),
        (asked([png()], reward="paired"), 400, "got 1 images and 0 prompts"),
        (asked([png()], ["\ud800"], reward="paired"), 400, "half of a surrogate pair in prompt 0"),
        (asked([png()], ["1" * 101], reward="paired"), 413, "100 characters, got 101 in prompt 0"),
        (asked([png()] * 9, reward="contrast"), 413, "may hold 8 images, got 9"),
        (asked([bomb(30_000)], reward="contrast"), 413, "40,000 pixels in all, got over 89,478,485 up to image 0"),
        (asked([bomb(5000)], reward="contrast"), 413, "40,000 pixels in all, got 25,000,000 up to image 0"),
        (asked([png(size=(150, 150))] * 2, reward="contrast"), 413, "40,000 pixels in all, got 45,000 up to image 1"),
        (b" " * 60_001, 413, "may have 60,000 bytes, got 60,001"),
        (b" " * 5_000_000, 413, "may have 60,000 bytes, got 5,000,000"),
        (asked([png()], ["poison"], reward="paired"), 500, "paired failed: ArithmeticError: poisoned"),
    ],
)
def test_what_is_not_taken(server: Server, body: bytes, status: int, sentence: str) -> None:
    """Each fault of a request has its status and one sentence, and the server goes on."""
    found, answer = send(server, body)
    assert (found, list(answer)) == (status, ["error"])
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert send(server, b"", "/health", how="GET")[0] == 200


@pytest.mark.parametrize(
    ("kind", "body", "status", "sentence"),
    [
        ("text/plain", b"{}", 415, "must be application/json or multipart/form-data, got text/plain"),
        ("multipart/form-data", b"--\r\n", 400, "must end with its boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n", 400, "must end with its boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--", 400, "a Content-Disposition with a name"),
        ("multipart/form-data; boundary=b", b"--b\r\n" * 19 + b"--b--", 413, "may hold 17 fields"),
    ],
)
def test_forms_that_are_not_taken(kind: str, body: bytes, status: int, sentence: str) -> None:
    """A form that is not whole, or another type of content, is refused."""
    with pytest.raises(Refused, match=sentence) as refused:
        parse(body, kind, LIMITS)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (b"nonsense\r\n\r\n", 400, b"cannot be read"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, b"cannot be read"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431, b"cannot be read"),
        (b"BREW /score HTTP/1.1\r\n\r\n", 405, b"Unsupported method"),
        (b"POST /health HTTP/1.1\r\nConnection: close\r\n\r\n", 405, b"/health takes GET, got POST"),
        (b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n", 404, b"there are /health, /rewards"),
        (b"POST /score HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, b"state its Content-Length"),
        (b"POST /score HTTP/1.1\r\nConnection: close\r\n\r\n", 411, b"state its Content-Length, got none"),
        (b"POST /score HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, b"must be one number, got '-1'"),
        (b"POST /score HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, b"got '1, 2'"),
        (b"POST /score HTTP/1.1\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n", 413, b"60,000 bytes, got"),
    ],
)
def test_broken_http(server: Server, sent: bytes, status: int, sentence: bytes) -> None:
    """What is hardly HTTP gets a status and a sentence in JSON, before a body that is too long is sent."""
    heard = raw(server, sent)
    assert heard.startswith(f"HTTP/1.1 {status} ".encode())
    assert sentence in heard
    assert list(json.loads(heard.partition(b"\r\n\r\n")[2])) == ["error"]


def test_a_body_that_does_not_come(paired: Paired) -> None:
    """A client that announces more than it sends is told so when its time is over, be it silent or slow."""
    with Server({"paired": paired}, limits=replace(LIMITS, seconds=0.3)).running() as server:
        head = b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
        with socket.create_connection(server.server_address[:2], timeout=10) as connection:
            connection.sendall(head)
            for _ in range(8):
                connection.sendall(b" ")
                time.sleep(0.06)
            assert connection.recv(2**16).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(server.server_address[:2], timeout=10) as connection:
            connection.sendall(head + b"{")
            connection.shutdown(socket.SHUT_WR)
            assert b"500 bytes was announced, got 1 in time" in connection.recv(2**16)


def test_one_connection_serves_many_requests(server: Server) -> None:
    """A refused request leaves the connection usable where its body was read."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    statuses = []
    for body in (b"{", asked([png(3)], ["4"], reward="paired"), b"[]", asked([png(3)], ["5"], reward="paired")):
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        statuses.append((response.status, json.loads(response.read()).get("values")))
    connection.close()
    assert statuses == [(400, None), (200, [3004]), (400, None), (200, [3005])]


def test_busy_is_503(paired: Paired) -> None:
    """Requests beyond the memory, and connections beyond their number, are told to come again, not queued for ever."""
    paired.pause = 0.4
    with Server({"paired": paired}, limits=replace(LIMITS, memory=1500)).running() as server:
        body = asked([png(1)], ["1"])
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(send, server, body)
            time.sleep(0.15)
            rest = [pool.submit(send, server, asked([png(1)] * 3, ["1"] * 3)) for _ in range(3)]
            assert [each.result()[0] for each in rest] == [503] * 3
            assert first.result() == (200, {"reward": "paired", "values": [1001], "notes": [""]})
        assert send(server, body)[0] == 200
    with Server({"paired": Paired()}, limits=replace(LIMITS, connections=1)).running() as server:
        held = socket.create_connection(server.server_address[:2])
        held.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        held.recv(1000)
        assert raw(server, b"").startswith(b"HTTP/1.1 503 ")
        held.close()


def test_descriptions(server: Server) -> None:
    """/rewards tells specs with null for no bound, and the document of OpenAPI names every address and its schemas."""
    _, described = send(server, b"", "/rewards", how="GET")
    specs = {spec["name"]: spec for spec in described["rewards"]}
    assert (specs["paired"]["low"], specs["paired"]["high"], specs["paired"]["needs_prompt"]) == (0, None, True)
    assert described["limits"] == {"body": 60_000, "images": 8, "pixels": 40_000, "prompt": 100}
    _, document = send(server, b"", "/openapi.json", how="GET")
    assert {path: next(iter(found)).upper() for path, found in document["paths"].items()} == PATHS
    schemas = document["components"]["schemas"]
    named = {part.partition('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert named <= schemas.keys()
    _, scores = send(server, asked([png()], reward="contrast"))
    _, health = send(server, b"", "/health", how="GET")
    spec = described["rewards"][0]
    for name, answer in {"Scores": scores, "Health": health, "Rewards": described, "Spec": spec}.items():
        assert set(schemas[name]["required"]) == set(answer)


def test_images_of_many_clients_share_batches(paired: Paired) -> None:
    """Requests that wait together are scored in full batches, on one thread, whole requests or not."""
    paired.pause = 0.2
    with Server({"paired": paired}, max_batch=4, limits=LIMITS).running() as server, ThreadPoolExecutor(8) as pool:
        first = pool.submit(send, server, asked([png(1)], ["1"]))
        time.sleep(0.1)
        rest = [pool.submit(send, server, asked([png(i)] * 3, ["1", "2", "3"])) for i in range(4)]
        assert first.result()[1]["values"] == [1001]
        assert [each.result()[1]["values"] for each in rest] == [
            [i * 1000 + 1, i * 1000 + 2, i * 1000 + 3] for i in range(4)
        ]
    assert paired.batches == [1, 4, 4, 4]
    assert len(paired.threads) == 1


def test_one_failure_does_not_take_the_others_with_it() -> None:
    """Where a batch of several callers fails, each is scored alone, and only the one at fault is told."""
    reward = Paired(pause=0.05)
    batcher = Batcher(reward, max_batch=8, max_wait=0.5)
    red = Image.new("RGB", (2, 2), (3, 0, 0))
    with ThreadPoolExecutor(3) as pool:
        good = [pool.submit(batcher.score, [red] * 3, ["1", "2", "3"]), pool.submit(batcher.score, [red], ["4"])]
        bad = pool.submit(batcher.score, [red] * 12, ["5"] * 3 + ["poison"] + ["6"] * 8)
        assert good[0].result().values.tolist() == [3001, 3002, 3003]
        assert good[1].result().values.tolist() == [3004]
        with pytest.raises(RunFailed, match="paired failed: ArithmeticError: poisoned"):
            bad.result()
    assert batcher.score([red], ["7"]).values.tolist() == [3007]
    assert batcher.score([], []).values.shape == (0,)
    batcher.close()
    with pytest.raises(RunFailed, match="paired takes no more images, got 1; it was closed"):
        batcher.score([red], ["7"])


def test_prompts_and_no_prompts_do_not_mix() -> None:
    """For a reward that needs no prompt, requests with and without one are scored in batches of their own."""
    batcher = Batcher(Contrast(), max_wait=0.2)
    images = [Image.effect_noise((8, 8), sigma).convert("RGB") for sigma in (1, 50, 90)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(batcher.score, [[image] for image in images], [[], ["a"], []]))
    batcher.close()
    assert [each.values.tolist() for each in found] == [Contrast().score([image]).values.tolist() for image in images]


def test_the_end_waits_for_requests_in_progress() -> None:
    """Closing answers what was asked before, refuses what comes after on an open connection, and frees the port."""
    reward = Paired(pause=0.5)
    server = Server({"paired": reward}, limits=LIMITS)
    idle = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    with ThreadPoolExecutor(1) as pool:
        with server.running():
            idle.request("GET", "/health")
            idle.getresponse().read()
            pending = pool.submit(send, server, asked([png(8)], ["1"]))
            time.sleep(0.2)
        assert pending.result(timeout=0.1)[1]["values"] == [8001]
    idle.request("GET", "/health")
    response = idle.getresponse()
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.server_address[:2])


def good_client(server: Server, client: int, rounds: int) -> None:
    """Asks over one connection, with images and prompts that no other client has, and checks every pairing."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    for turn in range(rounds):
        count = 1 + (client + turn) % 4
        prompts = [str(client * 10 + place) for place in range(count)]
        files = [png((client * 5 + place) % 256) for place in range(count)]
        connection.request("POST", "/score", asked(files, prompts), {"Content-Type": "application/json"})
        response = connection.getresponse()
        values = json.loads(response.read())["values"]
        expected = [(client * 5 + i) % 256 * 1000 + client * 10 + i for i in range(count)]
        assert (response.status, values) == (200, expected)
    connection.close()


def bad_client(server: Server, client: int, rounds: int) -> None:
    """Sends what is refused, and now and then goes away in the middle."""
    pick = random.Random(client)
    faults: list[Callable[[], object]] = [
        lambda: send(server, b"{"),
        lambda: send(server, asked([bomb(30_000)], ["1"])),
        lambda: send(server, b" " * 200_000),
        lambda: send(server, asked([png()], ["poison"])),
        lambda: send(server, asked([b"junk"], ["1"])),
        lambda: raw(server, b"\x00\x01\x02\r\n\r\n"),
        lambda: socket.create_connection(server.server_address[:2]).close(),
        lambda: abandoned(server, asked([png()], ["1"])),
    ]
    for _ in range(rounds):
        answer = pick.choice(faults)()
        if isinstance(answer, tuple):
            assert answer[0] in (200, 400, 413, 500)


def abandoned(server: Server, body: bytes) -> None:
    """A request whose client is gone before the answer."""
    head = b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(head + body)


def test_under_load(capfd: pytest.CaptureFixture[str]) -> None:
    """Of 50 clients 15 send broken, oversized and abandoned requests; the others get their own scores, every one."""
    reward = Paired(pause=0.002)
    with Server({"paired": reward}, limits=LIMITS, max_batch=16).running() as server, ThreadPoolExecutor(50) as pool:
        jobs = [pool.submit(bad_client if i % 10 < 3 else good_client, server, i, 10) for i in range(50)]
        for job in jobs:
            job.result(timeout=60)
        assert send(server, b"", "/health", how="GET")[1] == {"status": "ok", "waiting": {"paired": 0}}
    assert max(reward.batches) > 4
    assert len(reward.threads) == 1
    assert capfd.readouterr() == ("", "")


def test_the_command(tmp_path: Any) -> None:
    """`rwk serve` says where it listens, answers, and ends with 0 on SIGTERM, with what it did as a document."""
    code = "from rwk.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "contrast", "0.5*noise+1*exposure", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if " on http://" in line)
        url = line.partition(" on ")[2].partition(";")[0]
        host, _, port = url.removeprefix("http://").partition(":")
        assert host == "127.0.0.1"
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        body = asked([png(5)], reward="0.5*noise+1*exposure")
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        assert json.loads(connection.getresponse().read())["values"] == [pytest.approx(0, abs=1)]
        connection.close()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    document = json.loads(out)
    assert process.returncode == 0
    assert (document["url"], document["requests"], document["images"]) == (url, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["contrast", "--max-batch", "0"], "--max-batch must be at least 1, got 0"),
        (["contrast", "--max-wait-ms", "-1"], "--max-wait-ms must lie in 0..10000, got -1"),
        (["contrast", "--max-megabytes", "0"], "--max-megabytes must lie in 1..512, got 0"),
        (["contrast", "--port", "70000"], "--port must lie in 0..65535, got 70000"),
        (["contrst"], "unknown reward 'contrst'; did you mean contrast"),
    ],
)
def test_wrong_calls_of_the_command(rwk: Callable[..., Any], arguments: list[str], message: str) -> None:
    """A wrong option or name ends the command with 2 and one line, before anything is served."""
    ended = rwk("serve", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_a_port_that_is_taken(rwk: Callable[..., Any], server: Server) -> None:
    """Who names a port that is in use is told so."""
    port = str(server.server_address[1])
    ended = rwk("serve", "contrast", "--port", port)
    assert ended.code == 2
    assert f"127.0.0.1 port {port} cannot be listened on: {os.strerror(98)}" in ended.err
