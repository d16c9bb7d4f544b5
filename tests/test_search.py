"""Search at test time: rows that are resumed, what a partial image may become, best of n, and PARM."""

from __future__ import annotations

import functools
import math
import random
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_potential import potential
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_scenes import draw_scene
from rwk.adapters.shapes_train import random_scene
from rwk.adapters.shapes_verifier import Verifier, recognise
from rwk.adapters.shapes_vq import CODES
from rwk.adapters.shapes_world import CELL, Scene, Thing
from rwk.policy_opt.potential import RewardJudge, blank_of, potential_quantile
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.search import Search, best_of_n, parm

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, TOY_PROMPTS = toy["Toy"], toy["Brightness"], toy["PROMPTS"]
PROMPTS = ["a black cross", "a photo of a red circle", "a small blue square above a large green triangle"]
HARD = Sampling(guidance=3.0, temperature=0.7, top_k=50, top_p=0.9)
TOKENS = 64


class OwnCodes(ShapesLlama):
    """Codes have an embedding that differs from that of the ids of their number."""

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.embed_ids(CODES - 1 - codes)


@functools.cache
def tiny() -> ShapesLlama:
    return ShapesLlama.tiny()


@pytest.mark.parametrize("begun", [0, 1, 40, 63])
@pytest.mark.parametrize("recipe", [Sampling(), HARD])
@pytest.mark.parametrize("make", [ShapesLlama, OwnCodes])
def test_a_resumed_row_ends_as_it_would_have_ended(make: type[ShapesLlama], recipe: Sampling, begun: int) -> None:
    """Continued from its first tokens, a row gets the tokens of `sample`, among whichever rows it is continued."""
    generator = make.tiny()
    whole = generator.sample(PROMPTS, per_prompt=3, seed=4, sampling=recipe).tokens
    rows = [7, 0, 5]
    prompts, places = [PROMPTS[row // 3] for row in rows], [row % 3 for row in rows]
    generator.max_rows = 4
    found = generator.continue_from(prompts, whole[rows, :begun], places=places, seed=4, sampling=recipe)
    assert torch.equal(found, whole[rows])


def test_a_row_stops_where_it_is_told() -> None:
    """`until` ends a row early, and another seed draws other tokens."""
    none = torch.empty([1, 0], dtype=torch.long)
    whole = tiny().sample(PROMPTS[:1], seed=0).tokens
    part = tiny().continue_from(PROMPTS[:1], none, places=[0], seed=0, until=5)
    assert torch.equal(part, whole[:, :5])
    assert not torch.equal(tiny().continue_from(PROMPTS[:1], none, places=[0], seed=1, until=5), part)


def test_rows_that_begin_alike_are_read_once() -> None:
    """Four rows of one prompt, guided, are read as two: with the prompt and without."""
    generator = ShapesLlama.tiny()
    intact, shapes = generator.backbone, []

    def recording(embeds: Tensor, **options: object) -> Tensor:
        shapes.append(tuple(embeds.shape[:2]))
        return intact(embeds, **options)  # type: ignore[arg-type]

    generator.backbone = recording  # type: ignore[method-assign]
    none = torch.empty([4, 0], dtype=torch.long)
    generator.continue_from(PROMPTS[:1] * 4, none, places=range(4), seed=0, until=3, sampling=HARD)
    assert shapes == [(2, 4), (8, 1), (8, 1)]  # three words and the begin of the image


@pytest.mark.parametrize(
    ("places", "tokens", "until"), [([0], 3, 9), ([0, 1], 9, 9), ([0, 1], 3, 65), ([0, 1], 64, None)]
)
def test_rows_that_cannot_be_continued_are_refused(places: list[int], tokens: int, until: int | None) -> None:
    """A row without a place, and one that is as long as it is to be, are a ValueError."""
    with pytest.raises(ValueError, match=rf"{len(places)} places and tokens of shape \[2, {tokens}\]"):
        tiny().continue_from(
            PROMPTS[:2], torch.zeros([2, tokens], dtype=torch.long), places=places, seed=0, until=until
        )


def test_a_generator_of_whole_images_says_so() -> None:
    """What cannot be resumed or shown unfinished is one sentence, from the generator and from a search."""
    with pytest.raises(ValueError, match="toy shows finished images only, got 3 tokens"):
        Toy().decode_partial(torch.zeros([1, 3], dtype=torch.long))
    with pytest.raises(ValueError, match="toy draws whole images only"):
        parm(Toy(), Brightness(), hopeless, TOY_PROMPTS[:2], 2, checkpoints=[4], least=0.0, seed=0)


def test_a_partial_image_shows_what_is_drawn_and_background_below() -> None:
    """Of scenes in the upper half as coded, 19 in 20 are recognised alike from 32 codes and from all 64."""
    generator = ShapesLlama()
    rng = random.Random(0)
    tokens = generator.vq.encode(render([random_scene(rng) for _ in range(60)]))
    partial = generator.decode_partial(tokens[:, :32])
    seen = [
        recognise(torch.stack([pil_to_tensor(image) / 255 for image in images]))
        for images in (partial, generator.decode(tokens))
    ]
    upper = [[{t._replace(dy=0, dx=0) for t in scene if t.row == 0} for scene in scenes] for scenes in seen]
    assert sum(a == b for a, b in zip(*upper, strict=True)) >= 57
    assert not any(thing.row == 1 for scene in seen[0] for thing in scene)
    below = torch.stack([pil_to_tensor(image)[:, CELL + 3 :] for image in partial]).float()
    assert (below - torch.tensor([236.0, 234, 228])[:, None, None]).abs().max() < 40
    assert generator.decode_partial(tokens) == generator.decode(tokens)


def pictures(*scenes: Scene) -> list[Image.Image]:
    return [to_pil_image(pixels) for pixels in render(scenes)]


RED_CIRCLE = Thing("circle", "red", "large", 0, 0)
BLUE_SQUARE = Thing("square", "blue", "large", 0, 1)


@pytest.mark.parametrize(
    ("scene", "prompt", "drawn", "expected"),
    [
        ((), "a photo of a red circle", 32, 1.0),  # may still come below
        ((RED_CIRCLE,), "a photo of a red circle", 32, 1.0),
        ((BLUE_SQUARE,), "a photo of a red circle", 32, 3 / 4),  # nothing else
        ((BLUE_SQUARE,), "a photo of a red circle", 28, 1.0),  # the second quadrant is not finished
        ((RED_CIRCLE, BLUE_SQUARE), "a photo of a red circle left of a blue square", 32, 1.0),
        ((RED_CIRCLE, BLUE_SQUARE), "a photo of a red circle right of a blue square", 32, 7 / 8),
        ((RED_CIRCLE,), "a photo of a blue square above a red circle", 32, 7 / 8),
        ((RED_CIRCLE,), "a photo of four circles", 32, 1 / 3),  # at most three, as one quadrant stayed empty
        ((), "a photo of a red circle", 64, 0.0),  # it is too late
        ((), "a photo of a red circle", 27, math.nan),
        ((), "a photo of a dog", 32, math.nan),
    ],
)
def test_potential_is_the_best_that_can_still_come(scene: Scene, prompt: str, drawn: int, expected: float) -> None:
    """The share of facts that the best completion bears out; NaN before a quadrant is finished."""
    assert potential(pictures(scene), [prompt], drawn).tolist() == pytest.approx([expected], nan_ok=True)


def test_potential_is_never_below_the_final_score() -> None:
    """It bounds the verifier's score of the finished picture from above at every checkpoint, and is it at the end."""
    from rwk.adapters.shapes_prompts import prompts, understand

    rng = random.Random(1)
    texts = [prompt.text for prompt in prompts("shapes.long", 48, seed=1)]
    scenes = [draw_scene(understand(text), rng) if rng.random() < 0.5 else random_scene(rng) for text in texts]
    images = pictures(*scenes)
    final = Verifier().score(images, texts).values
    bounds = {drawn: potential(images, texts, drawn) for drawn in (28, 32, 60, 64)}
    assert all((bound >= final - 1e-6).all() for bound in bounds.values())
    assert torch.equal(bounds[64], final)
    assert (bounds[28] >= bounds[32]).all()
    assert (bounds[32] < 1).any()


@pytest.mark.parametrize("slots", [1, 9, 100])
def test_best_of_n_is_the_best_of_those_that_sample_draws(slots: int) -> None:
    """The kept images are those of `sample` that score highest, whatever is drawn at once."""
    rollout = Toy().sample(TOY_PROMPTS[:6], per_prompt=4, seed=2)
    scores = Brightness().score(Toy().decode(rollout.tokens)).values.view(6, 4)
    found = best_of_n(Toy(), Brightness(), TOY_PROMPTS[:6], 4, seed=2, keep=2, slots=slots)
    for row, pick in enumerate(found.picks):
        best = scores[row].argsort(descending=True, stable=True)[:2].tolist()
        assert [one.place for one in pick.kept] == best
        assert pick.scores == dict(enumerate(scores[row].tolist()))
        assert torch.equal(pick.kept[0].tokens, rollout.tokens[row * 4 + best[0]])
        assert pick.kept[0].image == Toy().decode(rollout.tokens[row * 4 + best[0]][None])[0]
    assert (found.cost.tokens, found.cost.finished, found.cost.judged) == (6 * 4 * 8, 24, 0)


def test_an_image_without_a_score_is_kept_last() -> None:
    """NaN ranks below every score, however low; of equals the first is kept."""
    found = best_of_n(Toy(), Brightness(gaps=True, sign=-1.0), TOY_PROMPTS, 8, seed=0, keep=8)
    missing = [[math.isnan(one.score) for one in pick.kept] for pick in found.picks]
    assert any(map(any, missing))
    assert all(row == sorted(row) for row in missing)
    flat = best_of_n(Toy(), Brightness(sign=0.0), TOY_PROMPTS[:3], 4, seed=0, keep=4)
    assert [[one.place for one in pick.kept] for pick in flat.picks] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize(("prompts", "n", "keep"), [(["a", "a"], 2, 1), ([], 2, 1), (["a"], 0, 1), (["a"], 2, 3)])
def test_a_search_that_makes_no_sense_is_refused(prompts: list[str], n: int, keep: int) -> None:
    """Prompts twice or none, and to keep more than are drawn, are a ValueError."""
    with pytest.raises(ValueError, match="a search"):
        best_of_n(Toy(), Brightness(), prompts, n, seed=0, keep=keep)


def hopeless(images: Sequence[Image.Image], prompts: Sequence[str], drawn: int) -> Tensor:
    """A potential below 0 for every image, higher for a brighter one."""
    return Brightness().score(images).values - 2


def never_clear(images: Sequence[Image.Image], prompts: Sequence[str], drawn: int) -> Tensor:
    return torch.full([len(images)], math.nan)


def searched(
    judge: object, least: float, *, n: int = 3, slots: int = 256, checkpoints: Sequence[int] = (16, 32)
) -> Search:
    return parm(  # type: ignore[arg-type]
        tiny(), Brightness(), judge, PROMPTS, n, checkpoints=checkpoints, least=least, seed=6, slots=slots, keep=n
    )


def outcome(found: Search) -> list[tuple[list[int], dict[int, float], int]]:
    return [([one.place for one in pick.kept], pick.scores, pick.started) for pick in found.picks]


def test_without_a_stop_parm_is_best_of_n() -> None:
    """Where it is never clear nothing is stopped, whatever potential is asked for: the picks are those of best of n."""
    plain = best_of_n(tiny(), Brightness(), PROMPTS, 3, seed=6, keep=3)
    found = searched(never_clear, math.inf)
    assert outcome(found) == outcome(plain)
    for one, other in zip(found.picks, plain.picks, strict=True):
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one.kept, other.kept, strict=True))
    assert found.cost.tokens == plain.cost.tokens == 3 * 3 * TOKENS
    assert (found.cost.judged, found.cost.read_again) == (18, 9 * (16 + 32))


def test_what_is_stopped_pays_for_others() -> None:
    """Candidates that are stopped cost no further token, new ones take their place, and no prompt draws more than n."""
    judge = RewardJudge(Brightness())
    least = potential_quantile(tiny(), judge, PROMPTS, 0.6, checkpoint=16, per_prompt=4, seed=1)
    found = searched(judge, least, n=6, checkpoints=(16,))
    whole = tiny().sample(PROMPTS, per_prompt=30, seed=6).tokens.view(3, 30, TOKENS)
    total = 0
    for row, pick in enumerate(found.picks):
        begun = whole[row, : pick.started, :16]
        value = judge(tiny().decode_partial(begun), [pick.prompt] * pick.started, 16)
        alive = {place for place in range(pick.started) if value[place] >= least}
        assert set(pick.scores) == alive
        spent = 16 * pick.started + (TOKENS - 16) * len(alive)
        assert 6 * TOKENS - TOKENS < spent <= 6 * TOKENS
        total += spent
        for one in pick.kept:
            assert torch.equal(one.tokens, whole[row, one.place])
    assert sum(pick.started for pick in found.picks) > 18
    assert found.cost.tokens == total
    assert found.cost.finished == sum(len(pick.scores) for pick in found.picks)
    assert found.cost.judged == sum(pick.started for pick in found.picks)


@pytest.mark.parametrize("slots", [1, 5])
def test_slots_do_not_change_what_is_found(slots: int) -> None:
    """One candidate at a time, five, or all: the same picks at the same cost in tokens."""
    judge = RewardJudge(Brightness())
    least = potential_quantile(tiny(), judge, PROMPTS, 0.5, checkpoint=16, seed=1)
    few, many = searched(judge, least, slots=slots), searched(judge, least)
    assert outcome(few) == outcome(many)
    assert few.cost.tokens == many.cost.tokens


def test_where_all_are_hopeless_the_best_of_them_is_finished() -> None:
    """Every prompt gets one image, that of the highest potential, within the tokens of best of n."""
    found = searched(hopeless, 0.0, checkpoints=(32,))
    for pick in found.picks:
        assert pick.started == 5  # 3 * 64 tokens are five halves and the rest of one image
        assert len(pick.scores) == 1
        begun = tiny().sample([pick.prompt], per_prompt=5, seed=6).tokens[:, :32]
        value = hopeless(tiny().decode_partial(begun), [pick.prompt] * 5, 32)
        assert pick.kept[0].place == value.argmax().item()
    assert found.cost.tokens == 3 * (5 * 32 + 32)


def test_what_is_stopped_at_every_checkpoint_is_finished_once() -> None:
    """A candidate that is taken up again and stopped again goes on from there, within the tokens of best of n."""
    found = searched(hopeless, 0.0, checkpoints=(16, 32, 48))
    assert [len(pick.scores) for pick in found.picks] == [1, 1, 1]
    assert found.cost.finished == 3
    assert found.cost.tokens <= 3 * 3 * TOKENS


def test_a_reward_judges_from_where_it_is_clear() -> None:
    """Before that the potential is NaN, and from there the score of the partial image."""
    images = tiny().decode_partial(tiny().sample(PROMPTS, seed=0).tokens[:, :16])
    judge = RewardJudge(Brightness(), clear_from=16)
    assert judge(images, PROMPTS, 15).isnan().all()
    assert torch.equal(judge(images, PROMPTS, 16), Brightness().score(images).values)


def test_a_reward_says_how_far_above_a_blank_an_image_is() -> None:
    """What it adds to the scores of one prompt, blank and all, has no part in a potential."""

    class Partial(Verifier):
        def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
            return Brightness().score(images).values + torch.tensor([float(len(prompt)) for prompt in prompts])

    images, blank = tiny().decode_partial(tiny().sample(PROMPTS, seed=0).tokens[:, :16]), blank_of(tiny())
    found = RewardJudge(Partial(), blank)(images, PROMPTS, 16)
    expected = Brightness().score(images).values - Brightness().score([blank]).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpoints", [(0,), (64,), (32, 32), (32, 16)])
def test_checkpoints_that_do_not_rise_are_refused(checkpoints: tuple[int, ...]) -> None:
    """They lie within an image, each after the last."""
    with pytest.raises(ValueError, match="must rise from above 0 to below 64"):
        searched(never_clear, 0.0, checkpoints=checkpoints)
