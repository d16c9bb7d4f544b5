"""Judging by rewards of every kind in each process that a launcher starts: OUT URL writes what each was told."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.benchmarks import evaluate
from rwk.policy_opt.experiment import Evaluation
from rwk.policy_opt.judging import Judges, judge
from rwk.policy_opt.policy import world
from rwk.policy_opt.prompts import Prompt
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.suites import Benchmark
from rwk.policy_opt.win_rates import WinRate
from rwk.rewards.pair_judge import PairJudge, pair_spec
from rwk.rewards.registry import load

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness = toy["Toy"], toy["Brightness"]
PROMPTS = [Prompt(f"a grey thing of kind {number}", "odd" if number % 2 else "even") for number in range(5)]
RULES = [("bright", "dark") if number % 2 else ("dark",) for number in range(5)]
IMAGES = 3


class Brighter(PairJudge):
    """Prefers the brighter image, and the one shown first a little."""

    spec = pair_spec("brighter", "n/a", "made up", needs_prompt=False)

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    @classmethod
    def tiny(cls) -> Brighter:
        return cls()

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor:
        self.asked += len(first)
        light = [[image.resize((1, 1)).getpixel((0, 0))[0] for image in images] for images in (first, second)]  # type: ignore[index]
        ahead = torch.tensor(light[0]) - torch.tensor(light[1])
        return (ahead / 255 + 0.1).sigmoid()


def judged(url: str) -> dict[str, Any]:
    """What this process is told of a generator before and after its weights moved, and on benchmarks then; and how much
    it scored itself."""
    generator, pair, rules = Toy(), Brighter(), {"bright": Brightness(), "dark": Brightness(sign=-1.0)}
    known = Brightness()
    on = {
        "truth": (Benchmark("truth", PROMPTS, "known"), Judges({"known": known}, {})),
        "rules": (Benchmark("rules", PROMPTS, "rules", rules=RULES), Judges({}, rules)),
        "one": (Benchmark("one", PROMPTS[:1], None), Judges({}, {})),
    }
    learnt = {"remote": load(url), "pair": WinRate(pair)}
    place = world(torch.device("cpu"))
    options = {"images": IMAGES, "sampling": Sampling(), "place": place}
    before = judge(generator, on, learnt, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        generator.module.head.bias.add_(torch.arange(16) / 20)
    after = judge(generator, on, learnt, before=before, **options)  # type: ignore[arg-type]
    told = [
        {
            "prompts": [prompt.text for prompt in drawn.prompts],
            "scores": {name: values.tolist() for name, values in drawn.scores.items()},
            "notes": drawn.notes,
            "pictures": [[list(image.tobytes()) for image in row] for row in drawn.images],
            "tokens": drawn.rollout.tokens.tolist(),
            "group": drawn.rollout.group.tolist(),
        }
        for found in (before, after)
        for drawn in found.values()
    ]
    rewards = [by for _, by in list(on.values())[:2]]
    chosen = [one for one, _ in list(on.values())[:2]]
    config = Evaluation(images=2, seeds=2)
    _, document = evaluate(config, generator, chosen, rewards, Sampling(), seed=0, place=place)
    scored = {"known": known.scored, "pair": pair.asked} | {name: reward.scored for name, reward in rules.items()}
    return {"told": told, "scored": scored, "rank": place.rank, "document": document}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = judged(sys.argv[2])
    Path(sys.argv[1], f"{found['rank']}.json").write_text(json.dumps(found))
