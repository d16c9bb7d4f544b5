"""Linear layers laid out for the processor: same values, undone in any case, and only where they may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rwk.policy_opt import packed as module_packed
from rwk.policy_opt.module_state import changes, module_state
from rwk.policy_opt.packed import outputs, packed


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two layers that are large enough, one of them with a bias."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 300, bias=False)).to(dtype)


def laid_out(layers: nn.Module) -> list[bool]:
    """Of every linear layer, whether it is laid out."""
    return ["forward" in vars(part) for part in layers.modules() if isinstance(part, nn.Linear)]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of a layer that has been laid out."""
    calls: list[int] = []
    intact = module_packed._Packed.__call__

    def recording(self: module_packed._Packed, hidden: Tensor, which: slice = slice(None)) -> Tensor:
        made = intact(self, hidden, which)
        calls.append(len(self.kept))
        return made

    monkeypatch.setattr(module_packed._Packed, "__call__", recording)
    return calls


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(256,), (1, 256), (16, 1, 256), (3, 40, 256)])
def test_values_are_the_same(dtype: torch.dtype, close: float, shape: tuple[int, ...], products: list[int]) -> None:
    """Within rounding, for one row or many, and the network is as it was at the end."""
    layers, hidden = network(dtype), torch.randn(shape).to(dtype)
    before = module_state(layers)
    with torch.no_grad():
        plain = layers(hidden)
        with packed(layers, rows=16, calls=100):
            made = layers(hidden)
    assert products == [1, 1]
    torch.testing.assert_close(made, plain, rtol=close, atol=close)
    assert not changes(before, module_state(layers))
    assert laid_out(layers) == [False, False]


def test_outputs_of_some_rows(products: list[int]) -> None:
    """Packed or not, some outputs are those of the whole layer, bias included."""
    layer, hidden = nn.Linear(256, 512), torch.randn(4, 256)
    with torch.no_grad():
        whole = layer(hidden)[:, 100:140]
        torch.testing.assert_close(outputs(layer, hidden, slice(100, 140)), whole, rtol=0, atol=1e-5)
        with packed(layer, rows=4, calls=1000):
            torch.testing.assert_close(outputs(layer, hidden, slice(100, 140)), whole, rtol=0, atol=1e-5)
    assert products == [1]


def test_undone_after_an_error() -> None:
    """An exception leaves the layers as they were."""
    layers = network()
    with pytest.raises(RuntimeError), packed(layers, rows=16, calls=100):
        layers(torch.zeros(1, 7))  # of the wrong width
    assert laid_out(layers) == [False, False]


def test_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows, small layers, doubles, layers that are more than their weights, and too large a network."""
    odd = nn.Sequential(
        nn.Linear(16, 16), network(torch.float64), nn.modules.linear.NonDynamicallyQuantizableLinear(512, 512)
    )
    with packed(odd, rows=16, calls=100):
        assert not any(laid_out(odd))
    layers = network()
    with packed(layers, rows=16, calls=2):
        assert not any(laid_out(layers))
    monkeypatch.setattr(module_packed, "MOST_BYTES", sum(weight.nbytes for weight in layers.parameters()) - 4096)
    with packed(layers, rows=16, calls=100):
        assert not any(laid_out(layers))


def test_a_gradient_and_autocast_take_the_plain_way(products: list[int]) -> None:
    """Inside, a gradient is right, and autocast has its type."""
    layers, hidden = network(), torch.randn(4, 256)
    with packed(layers, rows=16, calls=100):
        layers(hidden).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layers(hidden).dtype == torch.bfloat16
    assert products == [0, 0, 0, 0]
    assert all(weight.grad is not None for weight in layers.parameters())
