"""The name of a combination of rewards, read: `0.5*colorfulness+2*sharpness`, `lcb(a,b,k=1)`.

    sum  = term { "+" term }
    term = [ number "*" ] part
    part = "min" "(" sum "," sum { "," sum } ")"
         | "lcb" "(" sum "," sum { "," sum } [ "," "k" "=" number ] ")"
         | "z" "(" sum "," "mean" "=" number "," "sd" "=" number ")"
         | "permuted" "(" sum [ "," "k" "=" number ] ")"
         | "(" sum ")"  |  name  |  '"' name '"'

A name is anything that `registry.load` takes, and goes on to the next of + * ( ) , " so that a folder may hold a minus.
To take away, give a negative weight: `a+-1*b`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import NoReturn

from rwk.rewards.base import Reward
from rwk.rewards.combine import RESERVED, LowerBound, Minimum, Named, Standardised, WeightedSum
from rwk.rewards.permutation import Permuted

DEEPEST = 16
"""Parts within parts that are read."""
Build = Callable[[], tuple[str, Reward]]
"""Makes a part, and tells its name."""
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
_WEIGHT = re.compile(_NUMBER + r"\*")
_OPTION = re.compile(r"(k|mean|sd)\s*=\s*" + _NUMBER + r"(?=[,)])")
_FUNCTION = re.compile(r"(\w+)\s*\(")
_QUOTED = re.compile(r'"([^"]*)"')
_NAME = re.compile(f"([^{re.escape(RESERVED)}]+)")
_COMBINATIONS: dict[str, Callable[..., Named]] = {
    "min": Minimum,
    "lcb": LowerBound,
    "z": Standardised,
    "permuted": Permuted,
}
_OPTIONS: dict[str, frozenset[str]] = {
    "min": frozenset(),
    "lcb": frozenset({"k"}),
    "z": frozenset({"mean", "sd"}),
    "permuted": frozenset({"k"}),
}


def is_expression(name: str) -> bool:
    """Whether a name that nothing is called by is to be read as an expression.

    >>> is_expression("2*sharpness"), is_expression("runs/my-reward")
    (True, False)
    """
    return any(char in RESERVED for char in name)


def parse(text: str, load: Callable[[str], Reward]) -> Reward:
    """The reward that an expression stands for.

    Args:
        text: the expression.
        load: makes a reward of a name; called once for every name, after the whole text was read.

    Raises:
        ValueError: in one sentence that shows where the text is wrong, or from `load` or the combination.
    """
    reader = _Reader(text, cache(load))
    build = reader.sum()
    if reader.rest():
        reader.fail("+ or the end")
    return build()[1]


class _Reader:
    """Reads an expression from left to right; every method returns what builds a part and its name."""

    def __init__(self, text: str, load: Callable[[str], Reward]) -> None:
        self._text, self._load = text, load
        self._at = self._depth = 0

    def sum(self) -> Build:
        terms = [self._term()]
        while self._skip("+"):
            terms.append(self._term())

        def build() -> tuple[str, Reward]:
            weights = [weight for weight, _ in terms]
            parts = self._parts([part for _, part in terms])
            if weights == [1.0]:
                return next(iter(parts.items()))
            total = WeightedSum(parts, weights)
            return total.spec.name, total

        return build

    def rest(self) -> str:
        return self._text[self._at :].lstrip()

    def fail(self, wanted: str) -> NoReturn:
        came = f"{self.rest()[:20]!r}" if self.rest() else "its end"
        where = len(self._text) - len(self.rest()) + 1
        raise ValueError(
            f"reward {self._text!r} needs {wanted} at character {where}, got {came}; write 0.5*NAME+2*NAME, "
            f"min(NAME,NAME), lcb(NAME,NAME,k=1), z(NAME,mean=10,sd=3) or permuted(NAME,k=1), and a name with one of "
            f"+ * ( ) , in double quotes."
        )

    def _term(self) -> tuple[float, Build]:
        weight = self._take(_WEIGHT)
        return float(weight[1]) if weight else 1.0, self._part()

    def _part(self) -> Build:
        self._depth += 1
        if self._depth > DEEPEST:
            self.fail(f"at most {DEEPEST - 1} brackets within each other")
        if called := self._take(_FUNCTION):
            if called[1] not in _OPTIONS:
                self._at = called.start()
                self.fail("min, lcb, z or permuted before a bracket")
            build = self._call(called[1])
        elif self._skip("("):
            build = self.sum()
            self._need(")")
        else:
            build = self._name()
        self._depth -= 1
        return build

    def _name(self) -> Build:
        found = self._take(_QUOTED) or self._take(_NAME)
        name = found[1].strip() if found else ""
        if not name:
            self.fail("a name")
        return lambda: (name, self._load(name))

    def _call(self, function: str) -> Build:
        builds: list[Build] = []
        options: dict[str, float] = {}
        while True:
            if option := self._take(_OPTION):
                options[option[1]] = float(option[2])
            else:
                builds.append(self.sum())
            if not self._skip(","):
                break
        self._need(")")
        known = _OPTIONS[function]
        if set(options) - known or (function == "z" and set(options) != known):
            wanted = " and ".join(sorted(known)) or "no option"
            raise ValueError(f"{function} in reward {self._text!r} takes {wanted}, got {', '.join(options) or 'none'}.")

        def build() -> tuple[str, Reward]:
            made = _COMBINATIONS[function](self._parts(builds), **options)
            return made.spec.name, made

        return build

    def _parts(self, builds: list[Build]) -> dict[str, Reward]:
        parts: dict[str, Reward] = {}
        for name, part in (build() for build in builds):
            if name in parts:
                raise ValueError(f"reward {self._text!r} names {name} twice; name each part once.")
            parts[name] = part
        return parts

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The pattern's match at the next character that is not blank, which is then read."""
        self._at = len(self._text) - len(self.rest())
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found

    def _skip(self, char: str) -> bool:
        return self._take(re.compile(re.escape(char))) is not None

    def _need(self, char: str) -> None:
        if not self._skip(char):
            self.fail(char)
