"""Benchmarks by name: the world's own, GenEval, T2I-CompBench++, DPG-Bench, and any file of prompts."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rwk.policy_opt.dpg import Question, read_questions
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.prompts import FAMILIES, Domains, Prompt, domains, gold_of, read_prompts

BENCHMARKS = {
    "shapes.long": ("shapes.long.test", False),
    "shapes.long.held_out": ("shapes.long.test", True),
    "shapes.short": ("shapes.short.test", False),
    "shapes.short.held_out": ("shapes.short.test", True),
}
"""Benchmark -> the family of its prompts, and whether each of them holds a combination that is never learnt from."""
GENEVAL = "geneval.strict"
WRITER = "rwk.adapters.geneval_prompts:records"
"""`module:function(per_category, *, seed)` that writes prompts in GenEval's form."""
PER_CATEGORY = 80
"""Prompts that are written for each of GenEval's six categories, which has 553 in all."""
_BLIP, _PLACES, _CLIP = "blip_vqa.compbench", "compbench.spatial", "clipscore.b32_cosine"
COMPBENCH = {
    "color": (_BLIP,),
    "shape": (_BLIP,),
    "texture": (_BLIP,),
    "spatial": (_PLACES,),
    "3d_spatial": ("compbench.spatial_3d",),
    "numeracy": ("compbench.numeracy",),
    "non_spatial": (_CLIP,),
    "complex": (_BLIP, _PLACES, _CLIP),
}
"""Category of T2I-CompBench++ -> the rewards whose mean is its score.

Of a complex prompt CLIP reads all words here, where the benchmark's code leaves out those that spaCy takes for
adjectives.
"""
COMPLEX = {"complex_val_spatial": (_BLIP, _PLACES), "complex_val_action": (_BLIP, _CLIP)}
"""File of complex prompts -> the rewards for these; all three are for the others."""


class Benchmark(NamedTuple):
    """Prompts to draw, and what tells the truth about them."""

    name: str
    prompts: list[Prompt]
    gold: str | None
    """The reward that tells the truth, or the name of the score that `rules` or `questions` make; None where nobody
    knows it."""
    options: Mapping[str, Any] = MappingProxyType({})
    """What the reward is loaded with."""
    rules: Sequence[tuple[str, ...]] = ()
    """[P] rewards whose mean is the score of a prompt's images; empty where gold is a reward."""
    questions: Sequence[Sequence[Question]] = ()
    """[P] what a judge is asked about a prompt's images; empty where gold is a reward."""
    balanced: bool = False
    """Whether the figure of gold is the mean of its categories, and not of its prompts."""

    def digest(self) -> str:
        """SHA-256 of the prompts and their categories, in order, and of the questions, if there are any."""
        held = [self.prompts, self.questions] if self.questions else self.prompts
        return hashlib.sha256(json.dumps(held, ensure_ascii=False).encode()).hexdigest()

    def of(self, rows: Sequence[int]) -> Benchmark:
        """The same with some of its prompts."""
        rules = [self.rules[row] for row in rows] if self.rules else ()
        questions = [self.questions[row] for row in rows] if self.questions else ()
        return self._replace(prompts=[self.prompts[row] for row in rows], rules=rules, questions=questions)

    def truth(self) -> str | None:
        """The reward that gold is; None where it is made of several, of answers, or unknown."""
        return None if self.rules or self.questions else self.gold


def benchmark(name: str, count: int | None = None) -> Benchmark:
    """A benchmark, always with the same prompts; one that comes twice counts once.

    Args:
        name: one of `BENCHMARKS`; `geneval` for prompts written in its form, or `geneval:FILE` for its metadata;
            `compbench:FOLDER` of T2I-CompBench's prompts; `dpg:FILE` or folder of DPG-Bench's questions; a file as
            `prompts.read_prompts` takes it, which nothing measures; or `REWARD:PROMPTS`, a file or family that the
            mean score of a reward measures.
        count: how many prompts, from the beginning; of GenEval and T2I-CompBench of each category. 60 of the world's,
            `PER_CATEGORY` of those that are written, and all of a file by default.

    Raises:
        ValueError: for what is none, or lacks a file, and where a file of prompts has not as many.
    """
    if name in BENCHMARKS:
        family, held_out = BENCHMARKS[name]
        return Benchmark(name, read_prompts(family, count=count or 60, held_out=held_out), gold_of(family))
    if name == "geneval":
        module, _, function = WRITER.partition(":")
        records = getattr(importlib.import_module(module), function)(count or PER_CATEGORY, seed=0)
        prompts = [Prompt(record["prompt"], record["tag"]) for record in records]
        return Benchmark(name, prompts, GENEVAL, balanced=True)
    family, colon, path = name.partition(":")
    if colon and family in _FOREIGN:
        return _FOREIGN[family](name, Path(path).expanduser(), count)
    reward, source = ("", name) if Path(name).is_file() else (name.rpartition(":")[0], name.rpartition(":")[2])
    if not Path(source).is_file() and not (reward and source in FAMILIES):
        known = f"geneval, geneval:FILE, compbench:FOLDER, dpg:FILE, REWARD:PROMPTS, {', '.join(BENCHMARKS)}"
        raise ValueError(f"a benchmark is a file of prompts or one of {known}, got {name!r}; correct it.")
    found = _once(read_prompts(source, count=count if source in FAMILIES else None))
    if count is not None and len(found) < count:
        raise ValueError(f"{source} holds {len(found)} different prompts, got {count} to take; ask for fewer.")
    if reward:
        return Benchmark(name, found[:count], reward, rules=[(reward,)] * len(found[:count]))
    return Benchmark(name, found[:count], None)


def chosen(experiment: Experiment, *, seed: int) -> tuple[Domains, dict[str, Benchmark]]:
    """Prompts to learn from and to look at, and for each domain what the generator is judged on.

    Raises:
        ValueError: as `judged_on` and `prompts.domains` do.
    """
    named = judged_on(experiment.judge_on, experiment.eval_prompts)
    found = domains(
        experiment.prompts,
        train=experiment.prompt_count,
        test=experiment.eval_prompts,
        seed=seed,
        watch=experiment.watch_prompts if experiment.watch else 0,
        judged={domain: one.prompts for domain, one in named.items()},
    )
    gold = gold_of(experiment.prompts)
    return found, named or {domain: Benchmark(domain, prompts, gold) for domain, prompts in found.test.items()}


def judged_on(entries: Sequence[str], most: int) -> dict[str, Benchmark]:
    """Domain -> its benchmark, of `DOMAIN=BENCHMARK` entries, with `most` prompts at most, evenly over its categories.

    Raises:
        ValueError: for what is no benchmark, or one that nothing measures.
    """
    found = {}
    for entry in entries:
        domain, name = (part.strip() for part in entry.split("=", 1))
        one = benchmark(name, most if name in BENCHMARKS else None)
        if one.gold is None:
            raise ValueError(f"nothing measures the prompts of {name} for {domain}; name it as REWARD:{name}.")
        found[domain] = one.of(spread(one.prompts, most))
    return found


def spread(prompts: Sequence[Prompt], most: int) -> list[int]:
    """Places of `most` prompts at most, in order, as many of each category as can be, drawn by a fixed seed.

    >>> spread([Prompt(str(i), "few" if i < 2 else "many") for i in range(9)], 6)
    [0, 1, 2, 3, 5, 7]
    """
    draw = random.Random(0)
    categories: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        categories.setdefault(prompt.category, []).append(place)
    drawn = [sorted(places, key=lambda _: draw.random()) for places in categories.values()]
    in_turn = (place for places in itertools.zip_longest(*drawn) for place in places if place is not None)
    return sorted(itertools.islice(in_turn, most))


def _geneval(name: str, path: Path, count: int | None) -> Benchmark:
    """GenEval with the prompts and facts of its metadata file."""
    if not path.is_file():
        raise ValueError(f"GenEval needs its file evaluation_metadata.jsonl, got {path}, which is no file.")
    tags: dict[str, list[Prompt]] = {}
    for prompt in _once(read_prompts(str(path))):
        tags.setdefault(prompt.category, []).append(prompt)
    prompts = [prompt for group in tags.values() for prompt in group[:count]]
    return Benchmark(name, prompts, GENEVAL, options={"metadata": path}, balanced=True)


def _compbench(name: str, folder: Path, count: int | None) -> Benchmark:
    """T2I-CompBench++ with the validation prompts of the categories whose files are in the folder."""
    files = {category: folder / f"{category}_val.txt" for category in COMPBENCH}
    files = {category: file for category, file in files.items() if file.is_file()}
    if not files:
        raise ValueError(
            f"T2I-CompBench needs a folder of its prompts such as color_val.txt, got {folder}, where none of them is."
        )
    pairs: list[tuple[Prompt, tuple[str, ...]]] = []
    for category, file in files.items():
        texts = [prompt.text for prompt in _once(read_prompts(str(file)))][:count]
        rules = _complex(folder) if category == "complex" else {}
        of_category = [(Prompt(text, category), rules.get(_key(text), COMPBENCH[category])) for text in texts]
        pairs += sorted(of_category, key=lambda pair: pair[1])  # prompts of one rule are drawn together
    prompts, chosen = zip(*pairs, strict=True)
    return Benchmark(name, list(prompts), "compbench", rules=chosen, balanced=True)


def _complex(folder: Path) -> dict[str, tuple[str, ...]]:
    """Complex prompt -> the rewards of its kind, for those that are not judged by all three."""
    rules: dict[str, tuple[str, ...]] = {}
    for stem, rule in reversed(COMPLEX.items()):  # a prompt in both files is of the first kind
        file = folder / f"{stem}.txt"
        if not file.is_file():
            raise ValueError(f"T2I-CompBench's complex prompts need {stem}.txt beside complex_val.txt, got no {file}.")
        rules |= {_key(prompt.text): rule for prompt in read_prompts(str(file))}
    return rules


def _key(text: str) -> str:
    """What the benchmark compares complex prompts by."""
    return text.split(".")[0].lower()


def _dpg(name: str, path: Path, count: int | None) -> Benchmark:
    """DPG-Bench with the questions of its file."""
    asked = dict(list(read_questions(path).items())[:count])
    return Benchmark(name, [Prompt(text) for text in asked], "dpg", questions=list(asked.values()))


_FOREIGN: dict[str, Callable[[str, Path, int | None], Benchmark]] = {
    "geneval": _geneval,
    "compbench": _compbench,
    "dpg": _dpg,
}


def _once(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each text once."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(prompt.text, prompt)
    return list(found.values())
