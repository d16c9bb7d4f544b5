"""The generator that plans: what a plan says, what may stand where, and that it can be taught."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwk.adapters.pixels import Colorfulness
from rwk.adapters.shapes_generator import BEGIN, ShapesLlama
from rwk.adapters.shapes_plan import PLAN, TEXT, ShapesPlan, plan_ids, planned_scene
from rwk.adapters.shapes_plan_train import judged, likelihood, planned_captions, teach
from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_scenes import draw_scene
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_vq import CODES
from rwk.adapters.shapes_world import PLACES, Thing
from rwk.policy_opt import generator as generators
from rwk.policy_opt.experiment import Drawing
from rwk.policy_opt.sample import sample_to_folder
from rwk.policy_opt.sampling import Sampling


def test_a_plan_by_hand() -> None:
    """Quadrants come row by row, and an empty one is plain background."""
    scene = (Thing("ring", "blue", "large", 1, 0), Thing("circle", "red", "small", 0, 1, 3, -3))
    tokens = torch.tensor([plan_ids(scene) + [0] * 64])
    assert set(planned_scene(tokens[0])) == {thing._replace(dy=0, dx=0) for thing in scene}
    tokens[0, 1] = plan_ids(scene)[4]  # the first quadrant is now half empty
    assert planned_scene(tokens[0])[0] == Thing(None, "red", None, 0, 0)
    tokens = torch.tensor([plan_ids(scene) + [0] * 64])
    plain = "a plain background"
    assert ShapesPlan.tiny().texts(tokens) == [f"{plain}, small red circle, large blue ring, {plain}"]
    assert ShapesLlama.tiny().texts(tokens) == [""]


def test_words_come_first_and_codes_after_them() -> None:
    """Whatever is drawn, each word of a plan is of the kind of its place, and pictures are of codes."""
    generator = ShapesPlan.tiny()
    tokens = generator.sample(["a red circle", "a black cross"], per_prompt=40, seed=0).tokens
    for text in generator.texts(tokens):
        for part in text.split(", "):
            size, color, shape = part.split()
            assert size in ("small", "large", "a")
            assert color in ("plain", *"red orange yellow green cyan blue purple black".split())
            assert shape in ("background", "circle", "square", "triangle", "cross", "ring")
    assert (tokens[:, :PLAN] > BEGIN).all()
    assert (tokens[:, PLAN] == BEGIN).all()
    assert (tokens[:, TEXT:] < CODES).all()
    assert generator.chosen(tokens).sum(1).tolist() == [PLAN + 64] * 80
    assert not generator.chosen(tokens)[:, PLAN].any()
    assert len(generator.decode(tokens)) == 80


def test_rows_go_on_in_the_middle_of_a_plan() -> None:
    """A row that is continued from within the text, or from the picture, ends as it would have ended."""
    generator = ShapesPlan.tiny()
    recipe = Sampling(guidance=2.0, temperature=0.7, top_p=0.9)
    whole = generator.sample(["a red circle"], per_prompt=3, seed=4, sampling=recipe).tokens
    for begun in (0, 5, PLAN, TEXT, 40):
        found = generator.continue_from(
            ["a red circle"] * 2, whole[[2, 0], :begun], places=[2, 0], seed=4, sampling=recipe, until=60
        )
        assert torch.equal(found, whole[[2, 0], :60])


def test_captions_plan_what_is_drawn_but_for_those_that_are_spoiled() -> None:
    """About three in 20 plans are not of the caption, and about as many pictures not of the plan."""
    vq = ShapesLlama().vq
    texts, tokens = planned_captions(vq, count=200, seed=1)
    assert tokens.shape == (200, TEXT + 64)
    with torch.no_grad():
        seen = recognise(vq.decode(tokens[:, TEXT:].long()))
    drawn = [plan_ids(scene) if all(t.shape for t in scene) else None for scene in seen]
    agree = sum(ids == row[:TEXT].tolist() for ids, row in zip(drawn, tokens, strict=True)) / 200
    assert 0.75 < agree < 0.9
    assert all(understand(text).clauses for text in texts)


def test_it_can_be_taught() -> None:
    """A few steps from a generator that does not plan make plans and pictures likelier."""
    generator = ShapesPlan.tiny()
    rng = random.Random(0)
    texts = ["a photo of a red circle"] * 64
    plans = torch.tensor([plan_ids(draw_scene(understand(text), rng)) for text in texts])
    tokens = torch.cat([plans, torch.randint(4, [64, 64], generator=torch.Generator().manual_seed(0))], 1)
    before = likelihood(generator, texts[:8], tokens[:8], [False] * 8)
    assert list(teach(generator, texts, tokens, steps=12, seed=0)) == [12]
    after = likelihood(generator, texts[:8], tokens[:8], [False] * 8)
    assert (after < before - 0.02).all()
    assert all(0 <= share <= 1 for share in judged(generator, family="shapes.short.test", count=2, seed=0))


def test_the_manifest_tells_the_plan(tmp_path: Path) -> None:
    """`rwk sample` writes down what was planned before each image, whether images are chosen or not."""
    drawing = Drawing("shapes.plan", prompt=("a red circle",), per_prompt=2, out=str(tmp_path))
    generator = ShapesPlan.tiny()
    sample_to_folder(drawing, generator, generator.spec.sampling, seed=0)
    written = [json.loads(line)["text"] for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert written == generator.texts(generator.sample(["a red circle"], per_prompt=2, seed=0).tokens)
    best = replace(drawing, best_of=3, by="colorfulness")
    sample_to_folder(best, generator, generator.spec.sampling, seed=0, reward=Colorfulness())
    chosen = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert all(row["text"].count(", ") == 3 and "score" in row for row in chosen)


def test_the_shipped_generator_plans() -> None:
    """Most of its plans say what was asked, and most of its pictures are right where they follow theirs."""
    planned, drawn, followed = judged(ShapesPlan(), family="shapes.long.test", count=30, seed=1)
    assert planned > 0.45
    assert planned > drawn + 0.1
    assert min(drawn, followed) > 0.2


def test_it_is_loaded_by_name(tmp_path: Path) -> None:
    """Shipped, or saved; the words of a plan are no codes, so what counts codes refuses them."""
    own = ShapesPlan.begun_from(ShapesLlama())
    own.save(tmp_path / "plan")
    loaded = generators.load(f"shapes.plan@{tmp_path / 'plan'}")
    assert isinstance(loaded, ShapesPlan)
    assert isinstance(generators.load(str(tmp_path / "plan")), ShapesPlan)
    assert not torch.equal(generators.load("shapes.plan").module.lm_head.weight, loaded.module.lm_head.weight)
    for call in (loaded.code_embeddings, lambda: loaded.decode_partial(torch.zeros(1, 5, dtype=torch.long))):
        with pytest.raises(ValueError, match=r"shapes\.plan"):
            call()
    assert len(PLACES) * 3 == PLAN
