"""What a calibrator of pairs is: fitted on a table, it turns margins into probabilities of being preferred."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np

from rwk.calibration.pairs import Floats, PairTable, vector
from rwk.calibration.statistics import FEW_CLUSTERS

Status = Literal["unfitted", "ok", "separable", "uninformative"]
"""`separable` where no vote contradicts the margins, so that only the size of the sample bounds the confidence;
`uninformative` where the margins do not agree with the votes at all, so that every probability is 0.5."""


class Calibrator(ABC):
    """Any calibrator: settings, as in scikit-learn, and what a fit found, which is kept as JSON."""

    kind: ClassVar[str]
    """What the calibrator is called in a file."""
    classes_: tuple[str, ...]
    """What the columns of `predict_proba` stand for."""
    status_: Status = "unfitted"
    fit_: Mapping[str, Any]
    """What is known of the fit: pairs, prompts, standard errors, notes."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name, with which another of the class is made."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **settings: Any) -> Self:
        """Changes settings; raises ValueError for an unknown one."""
        for name, value in settings.items():
            if name not in self.get_params():
                known = ", ".join(self.get_params()) or "none"
                raise ValueError(f"{self.kind} has no setting {name!r}; there are {known}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def state(self) -> dict[str, Any]:
        """What the fit found, in JSON's types; `restore` takes it."""
        self.check_fitted()
        return {key: _plain(value) for key, value in self._state().items()}

    def restore(self, state: Mapping[str, Any], status: Status, fit: Mapping[str, Any]) -> Self:
        """Takes what an earlier fit found.

        Raises:
            ValueError: where a value is missing, of another type, not finite or out of its range.
        """
        try:
            self._restore(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.kind} needs what its fit found, got none that can be read: {error!r}.") from error
        self.status_, self.fit_ = status, dict(fit)
        return self

    def check_fitted(self) -> None:
        """Raises ValueError before a fit."""
        if self.status_ == "unfitted":
            raise ValueError(f"{self.kind} must be fitted before it is used, got none; call fit or load a file.")

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> None: ...


class PairCalibrator(Calibrator):
    """P(first is preferred) as an increasing function of the margin that is 1 - itself where the pair is swapped.

    A subclass writes `_fit`, `_probability`, `_state` and `_restore`. Ties take no part in a fit: given that there is a
    preference, Davidson's model of ties is the same function, so the temperature of data with and without ties can be
    compared.
    """

    classes_ = ("first", "second")
    needs: ClassVar[tuple[str, ...]] = ()
    """What `probability` takes beside the margins."""

    def fit(self, table: PairTable) -> Self:
        """Fits the votes that prefer one image; the probabilities do not depend on which is called the first.

        Raises:
            ValueError: where no pair has a preference.
        """
        held = table.take(table.decided > 0)
        if not len(held):
            raise ValueError(f"{self.kind} needs pairs with a preference, got none among {len(table)}; add some.")
        self.status_ = status_of(held)
        try:
            extra = self._fit(held)
        except ValueError:
            self.status_ = "unfitted"
            raise
        notes = [extra.pop("note")] if "note" in extra else []
        if held.prompts < FEW_CLUSTERS:
            notes.append(few_prompts(held.prompts))
        self.fit_ = {
            "pairs": len(held),
            "ties": int((table.tie == 1).sum()),
            "unscored": table.unscored,
            "prompts": held.prompts,
            **extra,
            "notes": notes,
        }
        return self

    def probability(self, margin: Any, **columns: Any) -> Floats:
        """[N] the probability that the first image is preferred, of margins [N] and what else `needs` names."""
        m = self._checked(margin, columns)
        return np.full(len(m), 0.5) if self.status_ == "uninformative" else self._probability(m, **columns)

    def predict_proba(self, margin: Any, **columns: Any) -> Floats:
        """[N, 2] probabilities in the order of `classes_`."""
        q = self.probability(margin, **columns)
        return np.stack([q, 1 - q], axis=1)

    def log_odds(self, margin: Any, **columns: Any) -> Floats:
        """[N] log-odds that the first image is preferred: what margins of several rewards are added in."""
        m = self._checked(margin, columns)
        return np.zeros(len(m)) if self.status_ == "uninformative" else self._log_odds(m, **columns)

    def of(self, table: PairTable) -> Floats:
        """[N] the probabilities of a table's pairs."""
        return self.probability(table.margin, **self._columns(table))

    def _checked(self, margin: Any, columns: Mapping[str, Any]) -> Floats:
        self.check_fitted()
        if set(columns) != set(self.needs):
            wanted, got = (", ".join(sorted(names)) or "nothing" for names in (self.needs, columns))
            raise ValueError(f"{self.kind} needs {wanted} beside the margins, got {got}; give what it was fitted with.")
        return vector("margin", margin)

    @abstractmethod
    def _fit(self, table: PairTable) -> dict[str, Any]:
        """Fits pairs with a preference; gives what to keep in `fit_`, with a `note` where there is something to say."""

    @abstractmethod
    def _probability(self, margin: Floats, **columns: Any) -> Floats: ...

    def _log_odds(self, margin: Floats, **columns: Any) -> Floats:
        # Not log q - log(1 - q): that is infinite from log-odds of 37 on.
        found: Floats = np.log(self._probability(margin)) - np.log(self._probability(-margin))
        return found

    def _columns(self, table: PairTable) -> dict[str, Any]:
        """What of a table `probability` takes beside the margins."""
        return {}


def status_of(table: PairTable) -> Status:
    """What margins can tell of these preferences, whatever the calibrator."""
    m, y, w = table.margin, table.label, table.decided
    agreeing = float((w * m * (y - 0.5)).sum())
    if agreeing <= 1e-12 * float((w * np.abs(m)).sum()):
        return "uninformative"
    contradicted = (w * np.where(m > 0, 1 - y, np.where(m < 0, y, 0))).sum()
    return "ok" if contradicted > 0 else "separable"


def few_prompts(count: int) -> str:
    """What is said of a fit on fewer prompts than `FEW_CLUSTERS`."""
    return f"{count} prompts are few: below {FEW_CLUSTERS} standard errors lean to the small side"


def shrunk(label: Floats) -> Floats:
    """[N] labels drawn towards 0.5 by 2 pseudo-votes against N, as in `rewards.losses.fit_temperature`."""
    drawn: Floats = 0.5 + (label - 0.5) * len(label) / (len(label) + 2)
    return drawn


def sigmoid(x: Floats) -> Floats:
    """[N] 1 / (1 + exp(-x)), such that sigmoid(x) + sigmoid(-x) is 1 to the last bit or two."""
    from scipy.special import expit

    found: Floats = expit(x)
    return found


def finite(value: Any, who: str, *, above: float = -math.inf, most: float = math.inf) -> float:
    """A number of a file; raises ValueError unless it is finite, larger than `above` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{who} must be a finite number, got {value!r}; fit again.")
    if not above < value <= most:
        raise ValueError(f"{who} must be above {above:g} and at most {most:g}, got {value:g}; fit again.")
    return float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
