"""What fine-tuning starts from, found by name, and which of its weights move."""

from __future__ import annotations

from typing import Any

from rwk.rewards.base import Reward
from rwk.rewards.layers import first_layers
from rwk.rewards.registry import REWARDS
from rwk.rewards.trainable import Trainable, TrainableReward
from rwk.rewards.tunable import HeadKind, Tunable

SCHEMES = {
    "open_clip": "rwk.adapters.dual_encoder:DualEncoder",
    "timm": "rwk.adapters.timm_head:TimmHead",
}
"""What `SCHEME:MODEL` names as a base: a class with `from_model`."""
KINDS = ("dual_encoder", "timm_head", "tuned")
"""Registered names of kinds of network, which have no weights of their own."""


def check_base(name: str) -> None:
    """Raises ValueError where `load_base` would, as far as that can be told without the weights."""
    scheme, colon, model = name.partition(":")
    if name in KINDS:
        raise ValueError(
            f"base must be a reward, got {name}, a kind of network without weights; take timm:MODEL, open_clip:MODEL, "
            f"or what `rwk train-reward` kept."
        )
    if colon and scheme == "scratch":
        _kept_whole(model)
    elif colon and scheme in SCHEMES:
        _of_scheme(scheme).check_model(model)
    elif not issubclass(kind_of := REWARDS.kind_of(name), Trainable | Tunable):
        raise ValueError(
            f"base must be a reward with a network to train, got {name} ({kind_of.__name__}); take shapes.clip, a "
            f"published one such as pickscore.v1 or judge.yes_no@PATH, a trained one, timm:MODEL or open_clip:MODEL."
        )


def load_base(
    name: str,
    *,
    image_size: int = 0,
    seed: int = 0,
    device: str = "cpu",
    head: HeadKind = "own",
    probe: bool = False,
) -> Trainable:
    """What training starts from: a reward, a folder, `scratch:REWARD`, `timm:MODEL` or `open_clip:MODEL`.

    Args:
        name: see above; `NAME@PATH` for weights of one's own, `scratch:REWARD` for another's shape with random ones.
        image_size: of `timm:MODEL` and `open_clip:MODEL`.
        seed, device: of random weights, and where the network runs.
        head: of a `Tunable` base; see `Tunable.take_head`.
        probe: whether the head alone will be trained.

    Raises:
        ValueError: where the name stands for a reward without a trainable network, or without such a head.
    """
    check_base(name)  # before its weights are fetched
    scheme, colon, model = name.partition(":")
    if colon and scheme == "scratch":
        return _untrained(model, seed=seed, device=device)
    if colon and scheme in SCHEMES:
        kind = _of_scheme(scheme)
        reward: Reward = kind.from_model(model, image_size=image_size, seed=seed, device=device)
    else:
        reward = REWARDS.load(name, device=device)
    if isinstance(reward, Tunable):
        tuned: Any = REWARDS.target("tuned")
        made: Trainable = tuned.over(reward, name, head=head, probe=probe, seed=seed, device=device)
        return made
    assert isinstance(reward, Trainable)  # as its class said
    if head not in ("own", getattr(reward, "head_kind", "own")):
        raise ValueError(f"{name} has its head already, got --head {head}; leave it out.")
    return reward


def _of_scheme(scheme: str) -> type[TrainableReward]:
    kind = REWARDS.target(SCHEMES[scheme])
    if not issubclass(kind, TrainableReward):
        raise TypeError(f"{kind} must be a TrainableReward")
    return kind


def _kept_whole(name: str) -> None:
    """Raises ValueError where no architecture is known of a reward."""
    if not issubclass(REWARDS.kind_of(name), TrainableReward):
        raise ValueError(
            f"scratch:REWARD must name a reward that is kept whole, such as shapes.clip or what was trained from it, "
            f"got {name}; start from its weights, or from timm:MODEL or open_clip:MODEL."
        )


def _untrained(name: str, *, seed: int, device: str) -> TrainableReward:
    """The architecture of a reward with random weights."""
    like: Any = REWARDS.load(name)
    kind: Any = REWARDS.target(like.registered)
    made: TrainableReward = kind(like.architecture, like.preprocessing, seed=seed, device=device)
    return made


def choose_parameters(reward: Trainable, mode: str, *, rank: int, seed: int, freeze: float = 0) -> Any:
    """Lets gradients reach what the mode trains; for `lora`, adds the low-rank changes and returns peft's model.

    Args:
        reward, mode: what is trained, and how.
        rank: of the low-rank changes.
        seed: of their random halves.
        freeze: layers that mode full leaves alone, see `first_layers`.

    Raises:
        ValueError: in mode `probe`, for a head that has nothing but a scale.
    """
    module = reward.module
    head = module.get_submodule("head")
    if mode == "probe" and all(name == "log_scale" for name, _ in head.named_parameters()):
        raise ValueError(f"{reward.spec.name} has no head that could be trained alone; take --mode lora or full.")
    if mode == "full":
        reward.widen()
    module.requires_grad_(mode == "full")
    lora = reward.lower(rank, seed) if mode == "lora" else None
    if lora is not None:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(".lora_" in name)
    head.requires_grad_(True)
    for name in first_layers(module, freeze):
        module.get_parameter(name).requires_grad_(False)
    return lora
