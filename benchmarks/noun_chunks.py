"""How often the rule of `noun_phrases` gives the phrases that spaCy gives, on the validation prompts of T2I-CompBench.

    python benchmarks/noun_chunks.py CHECKOUT MODEL > tests/parity/noun_chunks.json

CHECKOUT is a checkout of T2I-CompBench, MODEL the name of spaCy's en_core_web_sm. It runs where spaCy is installed.
Every thirtieth prompt of the three attributes is recorded with its phrases.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("top", "the side", "the left", "the right")
PLAIN = re.compile(r"an? [\w' -]+ and an? [\w' -]+")


def main() -> None:
    import spacy

    rule = runpy.run_path(str(ROOT / "adapters" / "noun_phrases.py"))["noun_phrases"]
    parse = importlib.import_module(sys.argv[2]).load()
    counts, sample = {}, {}
    for name in ("color", "shape", "texture", "complex", "non_spatial"):
        lines = Path(sys.argv[1], "examples", "dataset", f"{name}_val.txt").read_text().splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        theirs = [[c.text for c in parse(prompt).noun_chunks if c.text not in PLACES] for prompt in prompts]
        ours = [[phrase for phrase in rule(prompt) if phrase not in PLACES] for prompt in prompts]
        same = [mine == found for mine, found in zip(ours, theirs, strict=True)]
        plain = [equal for equal, prompt in zip(same, prompts, strict=True) if PLAIN.fullmatch(prompt)]
        counts[name] = {"same": sum(same), "of": len(same), "plain_same": sum(plain), "plain_of": len(plain)}
        if name in ("color", "shape", "texture"):
            sample |= dict(list(zip(prompts, theirs, strict=True))[::30])
    versions = {"spacy": spacy.__version__, "en_core_web_sm": parse.meta["version"]}
    found = {"package": "spacy", "versions": versions, "counts": counts, "phrases": sample}
    json.dump(found, sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
