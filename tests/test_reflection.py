"""Search with reflection: who is asked what, what it takes, and critics that say what is true."""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from rwk.adapters.judge_critic import QUESTION, VlmCritic
from rwk.adapters.shapes_critic import remarks
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_prompts import WORDS, understand, words_of
from rwk.adapters.shapes_prompts import prompts as prompts_of
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_scenes import draw_scene, spoil
from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt.reflection import amended, reflect
from rwk.policy_opt.search import best_of_n
from rwk.policy_opt.searches import critic_of

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS = toy["Toy"], toy["Brightness"], toy["PROMPTS"][:3]


class Listening(Toy):  # type: ignore[misc, valid-type]
    """Keeps what it was asked to draw."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def sample(self, prompts: Sequence[str], *, per_prompt: int = 1, **options: Any) -> Any:
        self.asked += [(prompt, per_prompt) for prompt in prompts]
        return super().sample(prompts, per_prompt=per_prompt, **options)


def content(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
    """Finds nothing wrong."""
    return [""] * len(images)


def test_a_content_critic_ends_the_search() -> None:
    """Only the first round is drawn, which is the beginning of best of n, and every prompt was looked at once."""
    found = reflect(Toy(), Brightness(), content, PROMPTS, 7, rounds=2, seed=3)
    plain = best_of_n(Toy(), Brightness(), PROMPTS, 4, seed=3)
    assert [pick.scores for pick in found.picks] == [pick.scores for pick in plain.picks]
    assert (found.cost.finished, found.cost.judged, found.cost.tokens) == (12, 3, 12 * 8)


def test_the_remark_is_put_behind_the_prompt() -> None:
    """What is found wrong is drawn again with the newest remark, and judged by the prompt alone."""
    generator, seen, scored = Listening(), list[tuple[str, bytes]](), set[str]()

    def critic(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        seen.extend((prompt, image.tobytes()) for prompt, image in zip(prompts, images, strict=True))
        return ["" if prompt == PROMPTS[1] else f"more light {len(seen)}" for prompt in prompts]

    class Asked(Brightness):  # type: ignore[misc, valid-type]
        spec = Brightness.spec.__class__(**{**vars(Brightness.spec), "needs_prompt": True})

        def _score(self, images: list[Image.Image], prompts: list[str]) -> Any:
            scored.update(prompts)
            return super()._score(images, prompts)

    found = reflect(generator, Asked(), critic, PROMPTS, 7, rounds=3, seed=3, keep=2, slots=3)
    first, second, third = PROMPTS
    assert generator.asked == [
        *((prompt, 3) for prompt in PROMPTS),
        *((amended(prompt, "more light 3"), 2) for prompt in (first, third)),
        *((amended(prompt, "more light 5"), 2) for prompt in (first, third)),
    ]
    assert scored == set(PROMPTS)
    assert [len(pick.scores) for pick in found.picks] == [pick.started for pick in found.picks] == [7, 3, 7]
    for pick in found.picks:
        assert [one.score for one in pick.kept] == sorted(pick.scores.values(), reverse=True)[:2]
        assert sorted(pick.scores) == list(range(pick.started))
    assert (found.cost.finished, found.cost.judged) == (17, 5)
    early = best_of_n(Toy(), Brightness(), PROMPTS, 3, seed=3)
    assert [image for _, image in seen[:3]] == [pick.kept[0].image.tobytes() for pick in early.picks]
    tokens = [tuple(row.tokens.tolist()) for row in found.picks[0].kept]
    assert len(set(tokens)) == 2


def test_refuses_rounds_without_images() -> None:
    """Every round draws something, and there is one to reflect upon."""
    for rounds in (1, 4):
        with pytest.raises(ValueError, match=f"got {rounds} and 3 images"):
            reflect(Toy(), Brightness(), content, PROMPTS, 3, rounds=rounds, seed=0)


def test_the_critic_of_the_world_tells_the_truth() -> None:
    """It is silent where the verifier is content, and else names things of the prompt in words that the world knows."""
    rng = random.Random(4)
    asked = [prompt.text for prompt in prompts_of("shapes.long", 300, seed=1)]
    scenes = [
        spoil(draw_scene(understand(text), rng), rng) if i % 3 else draw_scene(understand(text), rng)
        for i, text in enumerate(asked)
    ]
    images = [to_pil_image(pixels) for pixels in render(scenes)]
    said = remarks(images, asked)
    scores = Verifier().score(images, asked).values
    assert [not remark for remark in said] == (scores == 1).tolist()
    assert 50 < sum(not remark for remark in said) < 250
    for remark, text in zip(said, asked, strict=True):
        assert set(words_of(remark)) <= set(WORDS)
        if remark:
            named = understand(remark)
            assert {clause.shape for clause in named.clauses} <= {clause.shape for clause in understand(text).clauses}
    assert remarks(images[:1], ["a dog"]) == [""]
    assert remarks([], []) == []


@pytest.mark.parametrize(
    ("shown", "remark"),
    [
        ("a photo of a red circle and a blue ring", ""),
        ("a photo of a red circle and a green ring", "we see a blue ring"),
        ("a photo of a green circle and a green ring", "we see a red circle and a blue ring"),
        ("we see a red circle, a blue ring and a black cross and that is all",
         "we see a red circle and a blue ring and that is all"),
    ],
)  # fmt: skip
def test_remarks_by_hand(shown: str, remark: str) -> None:
    """What is wrong is named; where all is there and more, all is named."""
    picture = to_pil_image(render([draw_scene(understand(shown), random.Random(0))])[0])
    assert remarks([picture], ["a photo of a red circle and a blue ring"]) == [remark]


def test_a_relation_is_named_with_its_things() -> None:
    """Things that are there and lie wrong are a relation in the remark."""
    picture = to_pil_image(render([draw_scene(understand("a photo of a ring above a cross"), random.Random(0))])[0])
    assert remarks([picture], ["a photo of a ring below a cross"]) == ["we see a ring directly below a cross"]


def test_a_model_says_what_it_would_say() -> None:
    """Its remark is the likeliest word after word, none is silence, and a prompt of commands is not asked."""
    critic, image = VlmCritic.tiny(), Image.new("RGB", (56, 56), "red")
    said = critic([image, image], ["a red thing", "a <|im_end|>"])
    assert said[1] == ""
    vlm, ids = critic.vlm, list[int]()
    text = vlm.conversation([QUESTION.replace("{prompt}", "a red thing")])
    for _ in range(critic.tokens):
        likely = vlm.log_probs(vlm.batch([image], [text + vlm.tokenizer.decode(ids)]), skip=0, count=1)[0, 0]
        ids.append(int(likely.argmax()))
    assert said[0] == " ".join(vlm.tokenizer.decode(ids, skip_special_tokens=True).split())
    vlm.answer = lambda *_, **__: " None. "  # type: ignore[method-assign]
    assert critic([image], ["a red thing"]) == [""]
    with pytest.raises(ValueError, match="got 'nobody'"):
        critic_of("nobody")


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        (["--search", "parm", "--judge", "shapes.potential", "--least", "1"], None),
        (["--search", "parm", "--judge", "colorfulness"], None),
        (["--search", "reflect", "--judge", "shapes.critic", "--rounds", "3"], 4),
    ],
)
def test_searches_from_the_command_line(rwk: Any, tmp_path: Path, options: list[str], drawn: int | None) -> None:
    """The best of what was found is kept, the manifest tells the scores, and the recipe what it took."""
    ShapesLlama.tiny().save(tmp_path / "small")
    asked = ["--generator", "small", "--prompt", "a red circle", "--prompt", "a black cross", "--best-of", "4"]
    ended = rwk("sample", *asked, "--by", "shapes.verifier", *options, "--json")
    assert ended.code == 0, ended.err
    recipe = json.loads(ended.out)
    rows = [json.loads(line) for line in (tmp_path / "samples" / "manifest.jsonl").read_text().splitlines()]
    assert (recipe["search"], recipe["judge"]) == (options[1], options[3])
    assert recipe["drawn"] == sum(row["drawn"] for row in rows)
    assert recipe["cost"]["judged"] >= 2
    assert recipe["cost"]["tokens"] <= 2 * 4 * 64
    assert recipe["cost"]["finished"] == sum(len(row["scores"]) for row in rows)
    assert all(row["score"] == max(row["scores"]) for row in rows)
    if drawn:
        assert [row["drawn"] for row in rows] == [drawn] * 2


def test_refines_from_the_command_line(rwk: Any, tmp_path: Path) -> None:
    """What is written scores no less by the refining reward than what was drawn, and the manifest tells both scores."""
    ShapesLlama.tiny().save(tmp_path / "small")
    ended = rwk("sample", "--generator", "small", "--prompt", "a red circle", "--refine-by", "colorfulness_soft")
    assert ended.code == 2
    call = ["sample", "--generator", "small", "--prompt", "a red circle", "--per-prompt", "3"]
    assert rwk(*call, "--out", "plain").code == 0
    ended = rwk(*call, "--refine-by", "shapes.clip", "--trust", "30", "--out", "refined")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "refined" / "manifest.jsonl").read_text().splitlines()]
    assert all(row["after"] >= row["before"] for row in rows)
    assert any(row["after"] > row["before"] for row in rows)
    for folder, key in (("plain", "before"), ("refined", "after")):
        scored = json.loads(rwk("score", f"{folder}/manifest.jsonl", "--reward", "shapes.clip", "--json").out)
        found, expected = [row["shapes.clip"] for row in scored["rows"]], [row[key] for row in rows]
        assert found == pytest.approx(expected, abs=0.3)  # pixels are rounded to 255 levels in a file


def test_a_wrong_search_is_refused(rwk: Any) -> None:
    """A search needs its judge, and a judge its search."""
    for options in (["--search", "parm", "--best-of", "4", "--by", "noise"], ["--judge", "shapes.critic"]):
        ended = rwk("sample", *options)
        assert ended.code == 2
        assert "--search parm or reflect goes with --judge NAME" in ended.err
