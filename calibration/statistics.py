"""Intervals that know which rows belong together."""

from __future__ import annotations

from rwk.rewards.intervals import Interval, cluster_interval

__all__ = ["Interval", "cluster_interval"]
