"""The noise of a reward by its card: how far the score of an image moves where nobody would call it another image."""

from __future__ import annotations

from statistics import median

from rwk.calibration.card import RewardCard, card_of
from rwk.calibration.probe_agreement import RETEST
from rwk.calibration.storage import Binding
from rwk.rewards.base import Reward


def retest_noise(name: str, reward: Reward) -> float:
    """The deviation of a score in the reward's unit, the median of what `rwk probe` found at its harmless edits.

    So one edit that a reward is not made for does not decide: the world's verifier knows no noise, but pictures moved
    by less than a cell are new to it.

    Args:
        name: what the reward was loaded by; its card is kept under it.
        reward: as loaded, to which the card must belong.

    Raises:
        ValueError: where there is no card, where it is of other weights, code or preprocessing, and where it tells no
            noise.
    """
    path = card_of(name)
    if not path.is_file():
        raise ValueError(f"{name} needs a reward card for its noise, got none in {path}; run `rwk probe {name}`.")
    card = RewardCard.load(path)
    if apart := Binding.of(reward).differences(card.reward):
        raise ValueError(f"{name} needs a card of its own, got one in {path} with {apart[0]}; run `rwk probe {name}`.")
    levels = card.probes.get(RETEST.name, {}).get("levels", ())
    found: list[float] = [level["measures"]["noise"]["value"] for level in levels if "noise" in level["measures"]]
    if not found:
        raise ValueError(f"{name} needs a card that tells its noise, got none of it in {path}; run `rwk probe {name}`.")
    return median(found)
