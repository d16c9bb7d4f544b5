"""Some rows of a head are those of the whole, in value and gradient, and the whole is not computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.adapters.emu3 import Emu3Gen
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.head_rows import head_rows
from rwk.policy_opt.policy import trainable

ROWS = slice(20, 29)


class Model(nn.Module):
    """What peft puts adapters into."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.head = nn.Linear(6, 40, bias=bias)


def adapted(bias: bool = True, **options: Any) -> Any:
    """A head with LoRA's adapters, none of which is 0."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(Model(bias), LoraConfig(r=3, lora_alpha=5, target_modules=["head"], **options))
    for name, value in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(value)
    return model


@contextmanager
def widths_of(*layers: nn.Module) -> Iterator[list[int]]:
    """How many rows layers are asked for."""
    seen: list[int] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1])) for layer in layers]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({}, False),
        ({"bias": False}, False),
        ({"lora_bias": True}, False),
        ({"use_rslora": True}, False),
        ({"use_dora": True}, True),
    ],
    ids=["plain", "no bias", "bias of its own", "rslora", "dora"],
)
def test_rows_of_lora(options: dict[str, Any], whole: bool) -> None:
    """Value and gradient of every parameter; the vocabulary is computed for a variant alone."""
    model = adapted(**options)
    head, x = model.base_model.model.head, torch.randn(2, 5, 6)
    learns = [value for value in model.parameters() if value.requires_grad]
    want, weight = head(x)[..., ROWS], torch.randn(2, 5, 9)
    with widths_of(head, head.base_layer, *head.lora_B.values()) as seen:
        found = head_rows(head, x, ROWS)
    assert (40 in seen) == whole
    assert torch.allclose(found, want, atol=1e-6)
    slopes = [torch.autograd.grad((weight * value).sum(), learns) for value in (found, want)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*slopes, strict=True))


def test_adapters_off_merged_and_several() -> None:
    """Without its adapters the head is the base; merged ones count once; two at once are added."""
    from peft import LoraConfig

    model = adapted()
    head, x = model.base_model.model.head, torch.randn(4, 6)
    with model.disable_adapter():
        assert torch.allclose(head_rows(head, x, ROWS), head.base_layer(x)[:, ROWS], atol=1e-6)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["head"]))
    nn.init.normal_(head.lora_B["second"].weight)
    model.base_model.set_adapter(["default", "second"])
    both = head(x)[:, ROWS]
    assert torch.allclose(head_rows(head, x, ROWS), both, atol=1e-6)
    model.merge_adapter()
    assert torch.allclose(head_rows(head, x, ROWS), both, atol=1e-5)


def test_other_heads_are_computed_whole() -> None:
    """A head of several layers gives its rows too."""
    head, x = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 40)), torch.randn(4, 6)
    assert torch.equal(head_rows(head, x, ROWS), head(x)[:, ROWS])


def test_a_generator_under_lora_computes_its_codes_alone() -> None:
    """Emu3, whose codes are rows of its vocabulary: log-probabilities are those of the whole head, which is not run."""
    generator = Emu3Gen.tiny()
    rollout = generator.sample(generator.example_prompts[:2], seed=0)
    with trainable(generator, Grpo(lora_rank=2), keep=False):
        head: Any = generator.causal_lm.get_output_embeddings()
        nn.init.normal_(head.lora_B["default"].weight, std=0.3)
        with widths_of(head, head.base_layer, *head.lora_B.values()) as seen:
            logprobs = generator.logprobs(rollout)
        assert not seen

        def whole(hidden: Tensor) -> Tensor:
            return head(hidden)[..., generator.first_code :][..., : generator.spec.codes]  # type: ignore[no-any-return]

        generator.image_logits = whole  # type: ignore[method-assign]
        assert torch.allclose(generator.logprobs(rollout), logprobs, atol=1e-5)
        assert (logprobs - rollout.logprobs).abs().max() > 0.1
        del generator.image_logits
