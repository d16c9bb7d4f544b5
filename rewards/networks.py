"""Networks that several rewards hold together, each made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import nn


class Networks:
    """The networks of rewards that are loaded together, by what they were made of.

    Pass one to every `registry.load` of a run: rewards on the same weights then hold one network between them. It lives
    as long as whoever made it, and so do the networks in it.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, nn.Module] = {}

    def get(self, key: Hashable, make: Callable[[], nn.Module]) -> nn.Module:
        """The network of that key, made where there is none yet."""
        if key not in self._made:
            made = make()  # which may put parts of the network in under keys of their own
            self._made[key] = made
        return self._made[key]
