"""A generator small enough to be tuned in a second: 8 grey pixels of 16 levels, and a reward for bright images.

Run as a script it is one process of runs in folders of OUT: toy_generator.py OUT grpo|dynamic|dpo|rebel...
Or it is several that are killed, each at a place of its own: toy_generator.py OUT grpo|dpo|rebel --kill-at PLACE...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo, Grpo, Rebel
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.generator import Generator, GeneratorSpec, Rollout, TokenStatistics
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.prompts import Prompt
from rwk.policy_opt.rebel import rebel
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.trl_trainers import dpo_class, grpo_class
from rwk.policy_opt.watch import Watched
from rwk.rewards.base import Reward, RewardSpec, Scores

CODES, TOKENS, BUCKETS, WIDTH = 16, 8, 64, 32
PROMPTS = [f"a grey thing of kind {number}" for number in range(24)]


class Network(nn.Module):
    """Logits of the next code from the prompt's bucket, the place and the code before."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Embedding(BUCKETS, WIDTH)  # bucket 0 stands for no prompt
        self.place = nn.Embedding(TOKENS, WIDTH)
        self.code = nn.Embedding(CODES + 1, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, CODES)

    def forward(self, bucket: Tensor, before: Tensor, place: Tensor) -> Tensor:
        hidden = self.prompt(bucket) + self.place(place) + self.code(before)
        return self.head(self.dropout(torch.tanh(self.hidden(torch.tanh(hidden)))))


class Toy(Generator):
    spec = GeneratorSpec("toy", TOKENS, CODES, TOKENS, "n/a", "made up")

    def __init__(self, *, device: str = "cpu") -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.module = Network().to(device)

    @classmethod
    def tiny(cls) -> Toy:
        return cls()

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Toy:
        toy = cls()
        toy.module.load_state_dict(load_file(folder / "model.safetensors"))
        return toy

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(self.module.state_dict(), folder / "model.safetensors")

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        recipe = sampling or self.spec.sampling
        rows = [prompt for prompt in prompts for _ in range(per_prompt)]
        noise = [torch.Generator().manual_seed(zlib.crc32(f"{seed} {prompt}".encode())) for prompt in prompts]
        tokens = torch.zeros([len(rows), TOKENS], dtype=torch.long)
        logprobs = torch.zeros([len(rows), TOKENS])
        with torch.no_grad():
            for place in range(TOKENS):
                logp = self._logp(rows, tokens, recipe)[:, place]
                uniform = torch.cat([torch.rand(per_prompt, generator=source) for source in noise])[:, None]
                tokens[:, place] = (logp.exp().cumsum(1) < uniform).sum(1).clamp(max=CODES - 1)
                logprobs[:, place] = logp.gather(1, tokens[:, place, None])[:, 0]
        group = torch.arange(len(prompts)).repeat_interleave(per_prompt)
        return Rollout(rows, group, tokens, logprobs, recipe)

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        unguided = {"guidance": 1.0} if rollout.sampling.mode == "cond_only" else {}
        logp = self._logp(rollout.prompts, rollout.tokens, replace(rollout.sampling, **unguided))
        return TokenStatistics(logp.gather(2, rollout.tokens[..., None])[..., 0], -(logp.exp() * logp).sum(2))

    def code_embeddings(self) -> Tensor:
        angle = torch.arange(CODES) / CODES * 3
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def _levels(self, tokens: Tensor) -> Tensor:
        return (17 * tokens).to(torch.uint8)[:, None, None].expand(-1, 3, -1, -1)

    def _logp(self, prompts: list[str], tokens: Tensor, recipe: Sampling) -> Tensor:
        """[B, L, K] log-probabilities, guided as the recipe says, without dropout."""
        training = self.module.training
        self.module.eval()
        bucket = torch.tensor([1 + zlib.crc32(prompt.encode()) % (BUCKETS - 1) for prompt in prompts])[:, None]
        before = torch.cat([torch.full([len(tokens), 1], CODES), tokens[:, :-1]], dim=1)
        place = torch.arange(TOKENS)
        logits = self.module(bucket, before, place)
        if recipe.guidance != 1:
            without = self.module(torch.zeros_like(bucket), before, place)
            logits = without + recipe.guidance * (logits - without)
        self.module.train(training)
        return (logits / recipe.temperature).log_softmax(-1)


class Brightness(Reward):
    """Mean of the pixels, 0..1; no score where the first pixel is black, if asked so."""

    spec = RewardSpec("brightness", "share of white", 0, 1, "n/a", "made up", needs_prompt=False)

    def __init__(self, *, gaps: bool = False, sign: float = 1.0) -> None:
        super().__init__()
        self.gaps, self.sign = gaps, sign
        self.scored = 0

    @classmethod
    def tiny(cls) -> Brightness:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        self.scored += len(images)
        pixels = torch.tensor(np.stack([np.asarray(image)[0, :, 0] for image in images])) / 255
        black = (pixels[:, 0] == 0) & self.gaps
        values = self.sign * pixels.mean(1)
        return Scores(values.masked_fill(black, torch.nan), ["black" if dark else "" for dark in black])


class Dead(Brightness):
    """Brightness, but 1 for every image of the prompts of odd number."""

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = super()._score(images, prompts)
        odd = torch.tensor([int(prompt.split()[-1]) % 2 == 1 for prompt in prompts])
        return Scores(values.masked_fill(odd, 1.0), notes)


WATCHED = Watched(
    Weighted("dark", Brightness(sign=-1.0)), [Prompt(f"a grey thing seen by chance {number}") for number in range(5)], 3
)
GRPO = Grpo(
    steps=8, prompts_per_step=6, group_size=4, learning_rate=1e-2, kl_every=2, save_every=2, watch_every=4, seed=3
)
DYNAMIC = replace(GRPO, resampling="dynamic", max_draws=2)
"""With `Dead`, of which every second group is of equals, two draws of a step sometimes suffice."""
DPO = Dpo(
    group_size=4,
    batch_size=8,
    beta=0.1,
    prompts_per_draw=5,
    epochs=2,
    rounds=2,
    learning_rate=1e-2,
    save_every=2,
    seed=3,
)
REBEL = Rebel(
    group_size=4,
    batch_size=8,
    eta=20.0,
    prompts_per_draw=5,
    epochs=2,
    rounds=2,
    learning_rate=1e-2,
    save_every=2,
    seed=3,
)


class Mortal(Toy):
    """Dies by SIGKILL in the middle of a draw, counted from 1; of none at 0."""

    def __init__(self, last: int = 0) -> None:
        super().__init__()
        self.left = last * TOKENS - TOKENS // 2 if last else -1
        self.drawing = False

    def sample(self, prompts: Sequence[str], **options: Any) -> Rollout:
        self.drawing = True
        rollout = super().sample(prompts, **options)
        self.drawing = False
        return rollout

    def _logp(self, prompts: list[str], tokens: Tensor, recipe: Sampling) -> Tensor:
        self.left -= self.drawing
        if self.drawing and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._logp(prompts, tokens, recipe)


def killed(out: Path, name: str, *places: str) -> list[Path]:
    """Folders of runs that were killed by SIGKILL: after an update, as 3, or in the middle of a draw, as draw-2."""
    command = [sys.executable, str(Path(__file__)), str(out), name, "--kill-at", *places]
    subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}, timeout=600, check=True
    )
    return [out / place for place in places]


def main(out: str, *options: str) -> None:
    """The process of runs that `torchrun` starts, or one that is forked, since imports take long, for each kill."""
    torch.set_num_threads(1)
    if "--kill-at" not in options:
        for name in options:
            more: dict[str, Any] = {"watched": WATCHED} if name == "grpo" else {}
            learn(name, Toy(), Path(out, name), **more)
        Path(out, f"watched-{os.environ.get('RANK', 0)}").write_text(str(WATCHED.reward.reward.scored))
        return
    dpo_class()  # which imports what each child would import
    grpo_class()
    for place in options[2:]:
        child = os.fork()
        if not child:
            draw, update = (int(place[5:]), 0) if place.startswith("draw-") else (0, int(place))

            def progress(step: int, total: int, row: dict[str, Any], update: int = update) -> None:
                if step == update:
                    os.kill(os.getpid(), signal.SIGKILL)

            learn(options[0], Mortal(draw), Path(out, place), progress=progress)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"the run was to be killed at {place}, and ended with status {status}")


def learn(name: str, generator: Toy, out: Path, **options: Any) -> None:
    """A run of an algorithm on the toy."""
    run, config = {"grpo": (grpo, GRPO), "dynamic": (grpo, DYNAMIC), "dpo": (dpo, DPO), "rebel": (rebel, REBEL)}[name]
    begin: Any = run
    reward = Dead() if name == "dynamic" else Brightness()
    begin(config, generator, [Weighted("bright", reward)], PROMPTS, out=out, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
