"""Token weights, by references written out as loops."""

from __future__ import annotations

import math

import pytest
import torch

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import generator as generators
from rwk.policy_opt import token_weights as tw

GROUP = torch.tensor([4, 4, 4, 9, 9])


def codes() -> torch.Tensor:
    return torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(1))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))


def test_steepness() -> None:
    """The mean over a cross of five, then the central difference, with the nearest token beyond the edge."""
    entropy = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    found = tw.steepness(entropy).view(2, 4, 4)
    for row in range(2):
        grid = entropy[row].view(4, 4)

        def at(values: torch.Tensor, y: int, x: int) -> float:
            return float(values[min(max(y, 0), 3), min(max(x, 0), 3)])

        smooth = torch.tensor(
            [
                [
                    sum(at(grid, y + dy, x + dx) for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))) / 5
                    for x in range(4)
                ]
                for y in range(4)
            ]
        )
        for y in range(4):
            for x in range(4):
                down = (at(smooth, y + 1, x) - at(smooth, y - 1, x)) / 2
                right = (at(smooth, y, x + 1) - at(smooth, y, x - 1)) / 2
                assert found[row, y, x].item() == pytest.approx(math.hypot(down, right), abs=1e-6)


def test_agreement() -> None:
    """The mean cosine over every two images of a group, at each place; a group of one agrees with itself."""
    held = codes()
    found = tw.agreement(held, torch.tensor([4, 4, 4, 9, 7]))
    for place in range(16):
        pairs = [cosine(held[i, place], held[j, place]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found[0, place].item() == pytest.approx(sum(pairs) / 3, abs=1e-5)
    assert torch.equal(found[0], found[2])
    assert found[3:].eq(1).all()


def test_gcpo() -> None:
    """Running mean of the held ratio, at the tokens that a rule keeps, over the mean of the row."""
    source = torch.Generator().manual_seed(3)
    now, reference, entropy = (torch.randn(5, 16, generator=source) for _ in range(3))
    now.requires_grad_(True)
    held = codes()
    found = tw.gcpo(now, reference, entropy, held, GROUP)
    steep, agreed = tw.steepness(entropy), tw.agreement(held, GROUP)
    for row in range(5):
        kept = {0, 1, *steep[row].argsort()[-2:].tolist(), *agreed[row].argsort()[:2].tolist()}
        total, raw = 0.0, []
        for place in range(16):
            total += math.exp(min(max((now[row, place] - reference[row, place]).item(), -0.5), 0.5))
            raw.append(total / (place + 1) if place in kept else 0.0)
        expected = [value / (sum(raw) / 16) for value in raw]
        assert found[row].tolist() == pytest.approx(expected, rel=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize(
    "given",
    [
        (1.0, -0.5, -0.5, 0.3, 0.4),
        (1.0, 0.0, -0.5, 0.3, 0.4),
        (0.0, 0.0, 0.5, 1.0, 1.0),
    ],
)
def test_stage(given: tuple[float, ...]) -> None:
    """(1 - c) / 2 over the mean of the row, with the mean cosine c with the images on the other side, or on the mean
    of them all; of beta more is felt where c is larger."""
    held, advantage = codes(), torch.tensor(given)
    found, pull = tw.stage(held, advantage, GROUP), tw.stage_pull(held, advantage, GROUP)
    for row in range(5):
        others = [j for j in range(5) if j != row and GROUP[j] == GROUP[row] and advantage[j] * advantage[row] <= 0]
        c = [sum(cosine(held[row, t], held[j, t]) for j in others) / len(others) if others else 0.0 for t in range(16)]
        raw = [(1 - c[t]) / 2 if others else 1.0 for t in range(16)]
        felt = [0.5 + 0.5 * min(max(1 + c[t], 0.0), 1.0) if others else 1.0 for t in range(16)]
        assert pull[row].tolist() == pytest.approx(felt, abs=1e-5)
        assert found[row].tolist() == pytest.approx([value / (sum(raw) / 16) for value in raw], abs=1e-5)
    assert found[3].eq(1).all()  # nobody is on the other side
    assert 0.5 < pull.min() < 0.9


def test_panw() -> None:
    """Scales of one and four tokens at alpha 1/2: 1 and 1/2 each, over their mean 3/5."""
    assert tw.panw([1, 4], alpha=0.5).tolist() == pytest.approx([5 / 3] + [5 / 6] * 4)


def test_mean_is_one() -> None:
    """The mean of every row is 1, and a row of zeros counts as equal weights."""
    weights = tw.mean_one(torch.tensor([[0.0, 0.0], [1.0, 3.0]], requires_grad=True))
    assert weights.tolist() == [[1, 1], [0.5, 1.5]]
    assert not weights.requires_grad


def test_refuses_what_a_generator_has_not() -> None:
    """Draws of several tokens, a square grid and embeddings are asked for before anything is drawn."""
    generator = ShapesLlama.tiny()
    tw.check_token_weights("gcpo", generator)
    with pytest.raises(ValueError, match=r"several tokens at a time, got shapes\.llama"):
        tw.check_token_weights("panw", generator)
    with pytest.raises(ValueError, match="square grid of codes, got 8"):
        tw.grid_side(8)


def test_embeddings_are_what_is_decoded() -> None:
    """A picture's levels, quantised, are the embeddings of its codes."""
    vq = ShapesLlama.tiny().vq
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        levels = vq._levels(pixels).round() * (2 / 7) - 1  # [2, 3, 8, 8]
    assert torch.allclose(vq.code_embeddings()[vq.encode(pixels)], levels.flatten(2).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("name", ["janus.pro_1b", "llamagen.c2i_b_256", "llamagen.t2i_xl_256"])
def test_published_families_tell_their_embeddings(name: str) -> None:
    """Every code lies on the unit sphere, where it is decoded from, and both rules weigh a rollout by them."""
    generator = generators.GENERATORS.target(name).tiny()
    book = generator.code_embeddings()
    assert len(book) == generator.spec.codes
    assert torch.allclose(book.norm(dim=1), torch.ones(len(book)), atol=1e-5)
    assert not book.requires_grad
    rollout = generator.sample(generator.example_prompts[:2], per_prompt=3, seed=0)
    advantage = torch.tensor([1.0, -0.5, -0.5, 0.3, -0.6, 0.3])
    for how in ("gcpo", "stage"):
        tw.check_token_weights(how, generator)  # type: ignore[arg-type]
        weights = tw.token_weights(how, generator, generator.statistics, rollout, advantage)  # type: ignore[arg-type]
        assert torch.allclose(weights.mean(1), torch.ones(6), atol=1e-5)
        assert weights.min() >= 0
        assert weights.std(1).max() > 0.1
