"""Drawing by compiled steps against drawing by plain ones: the same images, whatever the family and the prompts."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.anole import Anole
from rwk.adapters.emu3 import Emu3Gen
from rwk.adapters.janus import JanusPro
from rwk.adapters.janus_plan import JanusPlan
from rwk.adapters.llamagen_t2i import Xl256
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.simplear import SimpleArSft
from rwk.adapters.var import Var16
from rwk.policy_opt import compiled
from rwk.policy_opt.compiled import compile_draws, rows_taken
from rwk.policy_opt.generator import Rollout
from rwk.policy_opt.sampling import Sampling

PROMPTS = ["a b", "a red circle", "b"]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps are made as for a GPU but for its kernels, in one piece or not at all; how many graphs were made."""
    made: list[int] = []

    def plain_kernels(graph: Any, _: Any) -> Any:
        made.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "OPTIONS", {"backend": plain_kernels, "dynamic": False, "fullgraph": True})
    return made


def drawn(generator: Any, guidance: float = 3.0, prompts: list[str] = PROMPTS) -> Rollout:
    rollout: Rollout = generator.sample(prompts, per_prompt=2, seed=1, sampling=Sampling(guidance=guidance))
    return rollout


def same(one: Rollout, other: Rollout) -> None:
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", [JanusPro, SimpleArSft, Emu3Gen, Anole, Xl256])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_compiled_steps_draw_the_same(family: Any, guidance: float, traced: list[int]) -> None:
    """One graph draws all steps of all prompts; again, for others, and after the weights moved, it is right too."""
    plain = family.tiny()
    quick = copy.deepcopy(plain)
    compile_draws(quick)
    same(drawn(quick, guidance), drawn(plain, guidance))
    assert len(traced) == 1
    assert traced[0] > 20
    same(drawn(quick, guidance, ["b", "a", "a red square"]), drawn(plain, guidance, ["b", "a", "a red square"]))
    with torch.no_grad():
        for one, other in zip(quick.module.parameters(), plain.module.parameters(), strict=True):
            one.mul_(0.9)
            other.mul_(0.9)
    same(drawn(quick, guidance), drawn(plain, guidance))
    assert len(traced) == 1


def test_images_are_continued_by_compiled_steps(traced: list[int]) -> None:
    """`continue_from`, in the middle of a line too, is as without."""
    plain, quick = Emu3Gen.tiny(), Emu3Gen.tiny()
    compile_draws(quick)
    begun = drawn(plain).tokens[:, :3]
    rows = [prompt for prompt in PROMPTS for _ in range(2)]
    wanted, found = (one.continue_from(rows, begun, places=[0, 1] * 3, seed=5) for one in (plain, quick))
    assert traced
    assert torch.equal(wanted, found)


def test_room_is_kept_where_the_shapes_are(traced: list[int]) -> None:
    """The next draw of a shape takes the same memory, one of another shape its own; a copy shares none."""
    quick = JanusPro.tiny()
    compile_draws(quick)
    drawn(quick)
    places = [room.data_ptr() for room in quick._compiled.room]
    drawn(quick, prompts=["b", "a a", "b b"])
    assert [room.data_ptr() for room in quick._compiled.room] == places
    assert not copy.deepcopy(quick)._compiled.room
    drawn(quick, guidance=1.0)
    assert quick._compiled.room[0].shape[0] == rows_taken(6) == 8


def rows_of(generator: Any, count: int) -> Rollout:
    rollout: Rollout = generator.sample(["a red circle"], per_prompt=count, seed=1, sampling=Sampling())
    return rollout


def test_few_graphs_do_for_many_rows(traced: list[int]) -> None:
    """Twelve numbers of rows are drawn by five graphs, more than torch would keep here, each as without."""
    plain, quick = SimpleArSft.tiny(), SimpleArSft.tiny()
    compile_draws(quick)
    for count in range(1, 13):
        with torch._dynamo.config.patch(recompile_limit=2):
            found = rows_of(quick, count)
        same(found, rows_of(plain, count))
        assert len(found.tokens) == count
    assert len(traced) == 5  # of 1, 2, 4, 8 and 16 rows


def test_plain_steps_for_lack_of_graphs_are_told_once(traced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a graph keeps it, what has none is drawn the same without, and one warning says so."""
    monkeypatch.setattr(compiled, "GRAPHS", 2)
    plain, quick = SimpleArSft.tiny(), SimpleArSft.tiny()
    compile_draws(quick)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for rows in (1, 2, 4, 8, 1, 4):
            same(rows_of(quick, rows), rows_of(plain, rows))
    assert len(traced) == 2
    assert ["2 graphs at most, got a draw of yet another shape, of 4 rows" in str(one.message) for one in told] == [
        True
    ]


def test_a_text_and_its_image_keep_a_room_each(traced: list[int]) -> None:
    """A generator that writes before it draws makes two graphs, and the next draw takes both, and their memory."""
    plain, quick = JanusPlan.tiny(), JanusPlan.tiny()
    compile_draws(quick)
    same(drawn(quick), drawn(plain))
    steps = quick._writer()._compiled, quick._painter()._compiled
    places = [room.data_ptr() for kept in steps for room in kept.room]
    same(drawn(quick), drawn(plain))
    assert places == [room.data_ptr() for kept in steps for room in kept.room]
    assert len(set(places)) == len(places) > 2
    assert len(traced) == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler on a CPU")
def test_torchs_compiler_draws_the_same() -> None:
    """With the options that a GPU gets, on the built-in generator's family."""
    torch._dynamo.reset()
    plain, quick = SimpleArSft.tiny(), SimpleArSft.tiny()
    compile_draws(quick)
    same(drawn(quick), drawn(plain))


def test_others_are_refused() -> None:
    """A generator that draws a whole scale at a time has no such step."""
    with pytest.raises(ValueError, match="torch_compile needs a generator that draws code by code, got var"):
        compile_draws(Var16.tiny())


def test_sample_takes_it(rwk: Any, tmp_path: Path, traced: list[int]) -> None:
    """`rwk sample` draws by plain steps, and with `--torch-compile` the same pictures by compiled ones."""
    words = ("--prompts", "shapes.short", "--count", "2", "--per-prompt", "1", "--json")
    for out, more, graphs in (("plain", (), 0), ("quick", ("--torch-compile",), 1)):
        ended = rwk("sample", *words, "--out", str(tmp_path / out), *more)
        assert ended.code == 0, ended.err
        assert len(traced) == graphs
    pictures = sorted((tmp_path / "plain").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.read_bytes() == (tmp_path / "quick" / picture.name).read_bytes()


def test_optimize_takes_it(rwk: Any, tmp_path: Path, traced: list[int]) -> None:
    """`rwk optimize` draws, learns and judges by plain steps, and with `--torch-compile` alike by compiled ones."""
    ShapesLlama.tiny().save(tmp_path / "small")
    words = ["--algo", "grpo", "--generator", str(tmp_path / "small"), "--reward", "contrast", "--prompt-count", "4"]
    words += ["--steps", "1", "--prompts-per-step", "2", "--group-size", "2", "--eval-prompts", "1", "--json"]
    found = []
    for out, more in (("plain", ()), ("quick", ("--torch-compile",))):
        ended = rwk("optimize", *words, "--out", str(tmp_path / out), *more)
        assert ended.code == 0, ended.err
        assert bool(traced) is (out == "quick")
        found.append(json.loads(ended.out)["results"])
        assert json.loads((tmp_path / out / "config.json").read_text())["algorithm"]["torch_compile"] is bool(more)
    for row in ("base", "tuned"):
        for domain, scores in found[0][row].items():
            mean = found[1][row][domain]["contrast"]["mean"]
            assert scores["contrast"]["mean"] == pytest.approx(mean, rel=1e-3), (row, domain)


def test_the_dry_run_counts_the_room(rwk: Any) -> None:
    """With `--torch-compile` a plan holds the room of a draw, of whole graphs' rows and lengths, while it learns."""
    plain, quick = (
        json.loads(rwk("optimize", "--algo", "grpo", "--reward", "shapes.verifier", "--dry-run", "--json", *more).out)
        for more in ((), ("--torch-compile",))
    )
    held = {name: quick["plan"][name] for name in ("cache", "activations", "logits")}
    assert quick["plan"]["cache"] > plain["plan"]["cache"]
    state = quick["plan"]["peak"] - sum(held.values())
    assert state == plain["plan"]["peak"] - max(
        plain["plan"]["cache"] + plain["plan"]["laid_out"], plain["plan"]["activations"] + plain["plan"]["logits"]
    )
