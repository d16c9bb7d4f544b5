"""Some rows of what a head computes, such as the image codes of a vocabulary, and no others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rwk.policy_opt.packed import outputs


def head_rows(head: nn.Module, hidden: Tensor, rows: slice) -> Tensor:
    """[..., rows] of `head(hidden)`, of hidden states [..., D]; other rows cost nothing, under LoRA too.

    With adapters A and B of scale s it is W[rows] x + s B[rows] A x. A head that is neither linear nor LoRA's over one
    is computed whole.

    >>> import torch
    >>> head, x = nn.Linear(4, 9), torch.ones(2, 4)
    >>> torch.allclose(head_rows(head, x, slice(3, 5)), head(x)[:, 3:5])
    True
    """
    if type(head) is nn.Linear:
        return outputs(head, hidden, rows)
    return _adapted(head, hidden, rows) if _is_lora(head) else head(hidden)[..., rows]


def _is_lora(head: Any) -> bool:
    """Whether it is a layer of LoRA in its plain form, not merged."""
    if not hasattr(head, "base_layer"):
        return False
    from peft.tuners.lora import Linear

    return type(head) is Linear and not head.lora_variant and not head.merged


def _adapted(head: Any, hidden: Tensor, rows: slice) -> Tensor:
    found = head_rows(head.base_layer, hidden, rows)
    dtype = found.dtype
    for name in () if head.disable_adapters else head.active_adapters:
        if name in head.lora_A:
            inner = head.lora_A[name](head.lora_dropout[name](hidden.to(head.lora_A[name].weight.dtype)))
            found = found + head_rows(head.lora_B[name], inner, rows) * head.scaling[name]
    return found.to(dtype)
