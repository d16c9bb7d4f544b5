"""Scores of one batch of opened images by several rewards, which share what they have in common."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.cache import Cache, Prints, key_of
from rwk.rewards.combine import Combination
from rwk.rewards.errors import RunFailed
from rwk.rewards.opening import Opened, key_of_image, stage
from rwk.rewards.precision import Precision, cast, overflow
from rwk.rewards.sinks import Row
from rwk.rewards.staged import EmbeddedReward, PreparedReward, Ready, by_shape

TEXTS = 4096
"""Embeddings of texts that are held, the latest used."""
NO_PROMPT = "needs a prompt"


def columns(rewards: Mapping[str, Reward]) -> dict[str, RewardSpec]:
    """The columns of the rewards, each after its parts where it is a combination."""
    found: dict[str, RewardSpec] = {}
    for name, reward in rewards.items():
        found |= {part: spec for part, spec in columns(reward.parts()).items() if part not in found}
        found[name] = reward.spec
    return found


def leaves(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """The rewards, and the parts of them at every depth, that are no combinations."""
    found: dict[str, Reward] = {}
    for name, reward in rewards.items():
        below = leaves(reward.parts()) if isinstance(reward, Combination) else {name: reward}
        for key, leaf in below.items():
            if found.setdefault(key, leaf) is not leaf:
                raise ValueError(
                    f"one reward per name can be scored with, got two called {key}; use registry.load_all."
                )
    return found


class Scorer:
    """Makes rows of opened images. Every image is embedded once a tower, and every text while it is remembered."""

    def __init__(
        self, rewards: Mapping[str, Reward], *, precision: Precision, cache: Cache | None, prints: Prints
    ) -> None:
        self._rewards = rewards
        self._precision = precision
        self._cache, self._prints = cache, prints
        self._texts: collections.OrderedDict[tuple[object, str], Tensor] = collections.OrderedDict()
        self._new: list[tuple[bytes, Tensor]] = []

    def rows(self, batch: Sequence[Opened]) -> list[Row]:
        """One row an image, with a note wherever a score is missing.

        Raises:
            RunFailed: where a reward raises anything but torch.OutOfMemoryError, which comes through.
        """
        done = {name: self._leaf(name, reward, batch) for name, reward in leaves(self._rewards).items()}
        if self._cache:
            self._cache.put(self._new)
        self._new = []
        for name, reward in self._rewards.items():
            if isinstance(reward, Combination):
                done |= reward.score_with(done)
                done[name] = done[reward.spec.name]  # it goes by the name that it was asked for by
        names = columns(self._rewards)
        return [self._row(i, opened, names, done) for i, opened in enumerate(batch)]

    @staticmethod
    def _row(place: int, opened: Opened, names: Mapping[str, RewardSpec], done: Mapping[str, Scores]) -> Row:
        row = Row(str(opened.item.image), opened.prompt, dict.fromkeys(names), {}, opened.note)
        for name in names:
            value, said = done[name].values[place].item(), done[name].notes[place]
            if math.isfinite(value):
                row.scores[name] = float(str(np.float32(value)))  # the fewest digits that stand for the same float32
            if note := opened.note or said or (f"the score is {value}" if math.isinf(value) else ""):
                row.notes[name] = note
        return row

    @torch.no_grad()
    def _leaf(self, name: str, reward: Reward, batch: Sequence[Opened]) -> Scores:
        """The scores of the whole batch by a reward without parts."""
        values, notes = torch.full([len(batch)], math.nan), [""] * len(batch)
        for prompted in (True, False):
            chosen = [i for i, opened in enumerate(batch) if not opened.note and bool(opened.prompt) is prompted]
            if not prompted and reward.spec.needs_prompt:
                for i in chosen:
                    notes[i] = NO_PROMPT
            elif chosen:
                found = self._scored(name, reward, [batch[i] for i in chosen], prompted)
                values[chosen] = found.values
                for i, note in zip(chosen, found.notes, strict=True):
                    notes[i] = note or overflow(reward, self._precision, values[i].item())
        return Scores(values, notes)

    def _scored(self, name: str, reward: Reward, chosen: list[Opened], prompted: bool) -> Scores:
        prompts = [opened.prompt for opened in chosen] if prompted else []
        try:
            if isinstance(reward, EmbeddedReward):
                return self._embedded(reward, chosen, prompts)
            with cast(reward, self._precision):
                return self._plain(reward, chosen, prompts)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            where = f"{len(chosen)} images from {chosen[0].item.image} on"
            raise RunFailed(f"{name} failed on {where}: {type(error).__name__}: {error}") from error

    def _plain(self, reward: Reward, chosen: list[Opened], prompts: list[str]) -> Scores:
        """Scores by a reward that takes images, or what is prepared of them, less those that the cache had."""
        new = [i for i, opened in enumerate(chosen) if reward not in opened.made]
        values, notes = torch.full([len(chosen)], math.nan), [""] * len(chosen)
        for i, opened in enumerate(chosen):
            if reward in opened.made:
                values[i] = opened.made[reward][0]
        if not new:
            return Scores(values, notes)
        asked = [prompts[i] for i in new] if prompts else []
        if isinstance(reward, PreparedReward):
            found = reward.score_ready([chosen[i].ready[reward.preparation] for i in new], asked)
        else:
            images = [image for i in new if (image := chosen[i].image)]
            found = reward.score(images, asked, batch_size=len(images))
        for i, value, note in zip(new, found.values, found.notes, strict=True):
            values[i], notes[i] = value, note
            if not note and value.isfinite():
                self._keep(reward, chosen[i], value[None])
        return Scores(values, notes)

    def _embedded(self, reward: EmbeddedReward, chosen: list[Opened], prompts: list[str]) -> Scores:
        """Scores by embeddings, which are made where no other reward, and no earlier run, made them."""
        what = stage(reward)
        ready = [opened.ready.get(reward.preparation, "") for opened in chosen]
        new = [each if what not in opened.made else "" for each, opened in zip(ready, chosen, strict=True)]
        for places, pixels in by_shape(new):
            with cast(reward, self._precision):
                rows = reward.embed_ready(pixels)
            for i, row in zip(places, rows.float(), strict=True):
                chosen[i].made[what] = row
                self._keep(reward, chosen[i], row)
        taken = [i for i, opened in enumerate(chosen) if what in opened.made]
        values = torch.full([len(chosen)], math.nan)
        if taken:
            image = torch.stack([chosen[i].made[what].to(reward.device) for i in taken])
            text = self._of_texts(reward, [prompts[i] for i in taken]) if reward.text_tower else None
            values[taken] = reward.score_features(image, text).float().cpu()
        return Scores(values, [_note(each) for each in ready])

    def _of_texts(self, reward: EmbeddedReward, prompts: list[str]) -> Tensor:
        """[B, E] embeddings of what the reward reads for the prompts."""
        by = reward.text_tower, self._prints.of_reader(reward.reader)
        keys = [(by, text) for text in reward.texts(prompts)]
        found = {key: row for key in keys if (row := self._known_text(reward, key)) is not None}
        new = [key for key in dict.fromkeys(keys) if key not in found]
        if new:
            with cast(reward, self._precision):
                rows = reward.text_features([text for _, text in new])
            for key, row in zip(new, rows.float(), strict=True):
                self._texts[key] = found[key] = row
                if self._cache:
                    self._new.append((key_of(self._prints.of_texts(reward), key[1]), row))
        while len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def _known_text(self, reward: EmbeddedReward, key: tuple[object, str]) -> Tensor | None:
        if key in self._texts:
            self._texts.move_to_end(key)
            return self._texts[key]
        row = self._cache.get(key_of(self._prints.of_texts(reward), key[1])) if self._cache else None
        if row is not None:
            self._texts[key] = row.to(reward.device)
        return self._texts.get(key)

    def _keep(self, reward: Reward, opened: Opened, row: Tensor) -> None:
        key = key_of_image(reward, opened, self._prints) if self._cache else None
        if key:
            self._new.append((key, row))


def _note(ready: Ready) -> str:
    return ready if isinstance(ready, str) else ""
