"""What can be chosen in `rwk optimize` besides its algorithm, in `rwk sample` and in `rwk evaluate`; loads no torch."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rwk.policy_opt.presets import PRESETS
from rwk.policy_opt.settings import COMPILE, setting

Find = Literal["best", "parm", "reflect"]
Algorithm = Literal["dpo", "grpo", "ladder", "rebel", "rft"]


_GOLD = (
    "NAME@PATH of a reward that a benchmark judges by, with the weights to take; may be given several times. "
    "[default: the published weights]"
)
_JUDGE = "Name of the reward that answers DPG-Bench's questions."


@dataclass(frozen=True)
class Run:
    """Which algorithm, and where its run is kept."""

    algo: Algorithm | None = setting(None, "Algorithm; may be left out with a preset of one.")
    preset: str | None = setting(
        None,
        "Settings of a published system, for what is not given: " + ", ".join(PRESETS) + ".",
        choices=tuple(PRESETS),
    )
    scaled: bool = setting(
        False,
        "Take of a preset what does not depend on the size of its model; always so in the built-in world.",
        switch=True,
    )
    dry_run: bool = setting(
        False, "Print what the run would hold in memory, draw and train, as computed, and stop.", switch=True
    )
    out: Path | None = setting(None, "Folder of the run. [default: the next free one below runs/]")
    name: str | None = setting(None, "Keep the tuned generator under this name. [default: that of the algorithm]")
    resume: bool = setting(False, "Go on with the run in the folder, or with the newest below runs/.", switch=True)

    def __post_init__(self) -> None:
        if self.algo is None and self.preset is None:
            raise ValueError("an optimisation needs an algorithm, got none; name one with --algo or a --preset.")
        if self.scaled and self.preset is None:
            raise ValueError("--scaled is of a preset, got none; name one with --preset.")
        if self.name is not None and not self.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"name must be of letters, digits, dots, dashes and underscores, got {self.name!r}.")

    def folder(self) -> Path:
        """`out`, or the newest folder of this algorithm below runs/ to resume, or else the next free one there.

        Raises:
            ValueError: where there is nothing to resume.
        """
        if self.out is not None:
            return self.out
        number = 1
        while Path("runs", f"{self.algo}-{number}").exists():
            number += 1
        if not self.resume:
            return Path("runs", f"{self.algo}-{number}")
        if number == 1:
            raise ValueError(f"there is no run of {self.algo} below runs/ to resume; leave --resume out or name --out.")
        return Path("runs", f"{self.algo}-{number - 1}")


@dataclass(frozen=True)
class Recipe:
    """The distribution that is drawn from; None leaves a setting to the generator."""

    guidance: float | None = setting(None, "Classifier-free guidance weight; 1 is none. [default: the generator's own]")
    temperature: float | None = setting(None, "Sampling temperature. [default: the generator's own]")
    top_k: int | None = setting(None, "Draw from the k most likely tokens; 0 from all. [default: the generator's own]")
    top_p: float | None = setting(
        None, "Draw from the tokens that hold this probability. [default: the generator's own]"
    )


@dataclass(frozen=True)
class LearntRecipe(Recipe):
    """The distribution that is drawn from, and what of it is learnt."""

    mode: Literal["off", "matched", "matched_detach_uncond", "cond_only"] | None = setting(
        None,
        "What guidance does to what is learnt: matched, the guided distribution that is drawn from; "
        "matched_detach_uncond, that with the gradient through the conditional branch alone, at half the cost; "
        "cond_only, the conditional model alone, which is biased, by the guidance_gap in metrics.jsonl; off, no "
        "guidance in drawing either. [default: the generator's own]",
        option="--guidance-mode",
    )


@dataclass(frozen=True)
class Experiment:
    """A generator, the rewards it is to learn from, and the prompts it learns and is judged on."""

    generator: str = setting("shapes.llama", "Name or folder of the generator.")
    rewards: tuple[str, ...] = setting(
        ("shapes.verifier",),
        "Name or folder of a reward to learn from, or name of a pair judge, whose reward is how often an image beats "
        "others of its prompt, asked in both orders; several are combined.",
        option="--reward",
    )
    opponents: int = setting(
        0,
        "Others of its group that a pair judge is shown each image with, in both orders, chosen by the seed; 0 is all.",
    )
    prompts: str = setting("shapes.long", "Prompt family, or file of prompts.")
    prompt_count: int = setting(2000, "Different prompts to learn from.")
    eval_prompts: int = setting(
        60,
        "Prompts of each domain that the generator is judged on before and after, of a benchmark at most, evenly over "
        "its categories.",
    )
    eval_images: int = setting(4, "Images of each of them.")
    judge_on: tuple[str, ...] = setting(
        (),
        "DOMAIN=BENCHMARK to judge it on by the benchmark's own measure, in place of prompts like those that it learns "
        "from: any of `rwk evaluate`, such as 'out of domain=geneval', or REWARD:PROMPTS; may be given several times.",
    )
    gold: tuple[str, ...] = setting((), _GOLD)
    judge: str = setting("judge.question", _JUDGE)
    watch: str = setting(
        "",
        "Name or folder of a reward, the truth or one of another make, to look at meanwhile on prompts that are "
        "neither learnt from nor judged on: its course beside the reward's, and an alarm where it falls while the "
        "reward rises. [default: none]",
    )
    watch_prompts: int = setting(32, "Prompts of each look; as many images of each as in judging.")

    def __post_init__(self) -> None:
        for name in ("prompt_count", "eval_prompts", "eval_images", "watch_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.opponents < 0:
            raise ValueError(f"opponents must be at least 0, got {self.opponents}.")
        if not self.rewards:
            raise ValueError("an optimisation needs a reward, got none; name one with --reward.")
        self._check_judging()

    def document(self) -> dict[str, Any]:
        """As a dictionary, for the record of a run; what belongs to `judge_on` is left out where that names nothing.

        So a run, or a study's cell, that was made before there was any is still the same.
        """
        found = asdict(self)
        return found if self.judge_on else {k: v for k, v in found.items() if k not in ("judge_on", "gold", "judge")}

    def _check_judging(self) -> None:
        domains = [entry.partition("=")[0].strip() for entry in self.judge_on]
        for entry, domain in zip(self.judge_on, domains, strict=True):
            if not domain or not entry.partition("=")[2].strip():
                raise ValueError(
                    f"judge_on takes DOMAIN=BENCHMARK, got {entry!r}; write such as 'out of domain=geneval'."
                )
            if domains.count(domain) > 1:
                raise ValueError(f"judge_on names each domain once, got {domain!r} {domains.count(domain)} times.")
        if not self.watch and self.watch_prompts != type(self).watch_prompts:
            raise ValueError(f"watch_prompts are of a reward to watch, got {self.watch_prompts} and none; name it.")
        if self.gold and not self.judge_on:
            raise ValueError(f"gold is of a benchmark to judge on, got {self.gold[0]} and none; name it with judge_on.")


@dataclass(frozen=True)
class Drawing:
    """What `rwk sample` draws."""

    generator: str = setting("shapes.llama", "Name or folder of the generator.")
    prompt: tuple[str, ...] = setting((), "A prompt; may be given several times.")
    prompts: str | None = setting(None, "Prompt family, or file of prompts. [default: the family shapes.long]")
    count: int | None = setting(None, "How many of its prompts. [default: 16 of a family, all of a file]")
    per_prompt: int | None = setting(None, "Images of each prompt. [default: 4, or the best 1 with --best-of]")
    best_of: int | None = setting(None, "Draw so many images of each prompt, and keep the best by a reward.")
    by: str | None = setting(None, "Name or folder of the reward that chooses.")
    search: Find = setting(
        "best",
        "How the best are found: best draws them all; parm stops those without potential and begins others in their "
        "place; reflect draws again where a critic finds something wrong, with what it says.",
    )
    judge: str | None = setting(
        None,
        "Of parm, who sees potential in half an image: shapes.potential, or a reward, by its score of it. Of reflect, "
        "the critic: shapes.critic, judge.critic, or judge.critic@PATH for other weights.",
    )
    checkpoint: tuple[int, ...] = setting(
        (), "Tokens after which parm judges; may be given several times. [default: half an image]"
    )
    least: float | None = setting(
        None, "Potential below which parm stops an image. [default: that of 2 in 10 of a pilot drawing]"
    )
    rounds: int = setting(2, "Rounds of reflect, which share the images that --best-of allows.")
    refine_by: str | None = setting(
        None, "Name or folder of a reward with a gradient, by which every kept image is refined in its codes."
    )
    trust: float = setting(1.0, "Squared distance of codes that refining may go for each unit of its reward.")
    torch_compile: bool = setting(False, COMPILE, switch=True)
    out: str = setting("samples", "Folder for the images and manifest.jsonl.")

    def __post_init__(self) -> None:
        if self.prompt and self.prompts:
            raise ValueError("prompts come from --prompt or from --prompts, got both; leave one out.")
        for name in ("per_prompt", "count", "best_of"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {given}.")
        if (self.best_of is None) != (self.by is None):
            have, lack = ("--by", "--best-of") if self.best_of is None else ("--best-of", "--by")
            raise ValueError(f"--best-of N and --by REWARD go together, got {have} alone; give {lack} too.")
        if (self.search != "best") != (self.judge is not None) or (self.judge is not None and self.by is None):
            raise ValueError(
                f"--search parm or reflect goes with --judge NAME, --best-of N and --by REWARD, got --search "
                f"{self.search} with judge {self.judge} and reward {self.by}."
            )
        if not self.trust > 0:
            raise ValueError(f"--trust must be above 0, got {self.trust}.")
        if self.best_of is not None and self.kept > self.best_of:
            raise ValueError(
                f"--best-of must be at least --per-prompt, got {self.best_of} and {self.kept}; draw more or keep fewer."
            )

    @property
    def kept(self) -> int:
        """Images of each prompt that are written."""
        return self.per_prompt or (4 if self.best_of is None else 1)


@dataclass(frozen=True)
class Evaluation:
    """What `rwk evaluate` measures of a generator."""

    generator: str = setting("shapes.llama", "Name or folder of the generator.")
    benchmarks: tuple[str, ...] = setting(
        (),
        "shapes.long, shapes.short, either with .held_out behind it; geneval, or geneval:FILE for its metadata; "
        "compbench:FOLDER of T2I-CompBench's prompts; dpg:FILE of DPG-Bench's questions; REWARD:PROMPTS, of a file or "
        "family, for that reward to judge; or a file of prompts for the rewards to judge; may be given several times. "
        "[default: all four of shapes]",
        option="--benchmark",
    )
    rewards: tuple[str, ...] = setting(
        (),
        "Name or folder of a reward whose mean score is measured too; may be given several times.",
        option="--reward",
    )
    gold: tuple[str, ...] = setting((), _GOLD)
    judge: str = setting("judge.question", _JUDGE)
    prompts: int | None = setting(
        None,
        "Prompts of each benchmark, or of each category of geneval and compbench. "
        "[default: 60 of shapes, 80 of geneval's categories, all of a file]",
    )
    images: int = setting(4, "Images of each prompt and seed.")
    seeds: int = setting(3, "How many seeds, from --seed on.")
    out: Path | None = setting(None, "Folder for the results. [default: the next free one below runs/]")

    def __post_init__(self) -> None:
        for name in ("prompts", "images", "seeds"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"--{name} must be at least 1, got {given}.")
        for option, given in (("benchmark", self.benchmarks), ("reward", self.rewards), ("gold", self.gold)):
            twice = [name for name in given if given.count(name) > 1]
            if twice:
                raise ValueError(f"each --{option} is named once, got {twice[0]} {given.count(twice[0])} times.")

    def folder(self) -> Path:
        """`out`, or the next free folder below runs/.

        Raises:
            FileExistsError: where results are there already.
        """
        if self.out is None:
            return next(path for n in itertools.count(1) if not (path := Path("runs", f"evaluate-{n}")).exists())
        if (self.out / "result.json").exists():
            raise FileExistsError(f"{self.out} holds results already; name another folder.")
        return self.out
