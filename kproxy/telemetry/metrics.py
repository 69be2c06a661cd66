"""Counters, gauges and histograms; an update takes less than a microsecond, to keep syncs fast.

Nothing is formatted here and no client library is loaded: kproxy.telemetry.exposition does both when /metrics
is scraped.
"""

import threading
from bisect import bisect_left
from collections.abc import Collection

import msgspec

from kproxy.addresses import Family
from kproxy.telemetry.series import ALL, HEALTHCHECK, HEALTHCHECKS, Series, SeriesType

Labels = tuple[str, ...]
"""Label values, in the order of the series' labels."""


class Distribution(msgspec.Struct, frozen=True):
    """A histogram: observations per bucket (the last one is +Inf), not accumulated, and their sum."""

    counts: tuple[int, ...]
    sum: float


class _Histogram:
    def __init__(self, size: int) -> None:
        self.counts = [0] * (size + 1)
        self.sum = 0.0


class Sample(msgspec.Struct, frozen=True):
    """One value of one series."""

    series: Series
    labels: Labels
    value: float | Distribution


class Metrics:
    """The values of one process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[tuple[Series, Labels], float] = {}
        self._histograms: dict[tuple[Series, Labels], _Histogram] = {}

    def begin(self, families: Collection[Family]) -> None:
        """Set every counter and histogram without labels other than the family to 0.

        A rate needs an initial value, and dashboards list the instances that have a histogram.
        """
        with self._lock:
            for series in ALL:
                if series.type is SeriesType.GAUGE or series.labels not in {(), ("ip_family",)}:
                    continue
                for labels in [(family.value,) for family in families] if series.labels else [()]:
                    if series.type is SeriesType.COUNTER:
                        self._numbers.setdefault((series, labels), 0.0)
                    else:
                        self._histograms.setdefault((series, labels), _Histogram(len(series.buckets)))

    def add(self, series: Series, *labels: str, amount: float = 1.0) -> None:
        """Increase a counter."""
        key = (series, labels)
        with self._lock:
            self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def set(self, series: Series, *labels: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._numbers[series, labels] = value

    def observe(self, series: Series, *labels: str, value: float) -> None:
        """Add one observation to a histogram."""
        key = (series, labels)
        with self._lock:
            histogram = self._histograms.get(key)
            if histogram is None:
                histogram = self._histograms[key] = _Histogram(len(series.buckets))
            histogram.counts[bisect_left(series.buckets, value)] += 1
            histogram.sum += value

    def has(self, series: Series, *labels: str) -> bool:
        """Whether a counter or gauge has a value."""
        return (series, labels) in self._numbers

    def samples(self) -> list[Sample]:
        """All current values."""
        with self._lock:
            found = [Sample(series, labels, value) for (series, labels), value in self._numbers.items()]
            found += [
                Sample(series, labels, Distribution(tuple(each.counts), each.sum))
                for (series, labels), each in self._histograms.items()
            ]
        return found


def observe_check(metrics: Metrics, name: str, path: str, *, passed: bool) -> None:
    """Count the outcome of a health check; `path` is the one requested (`healthz`, `livez`)."""
    metrics.set(HEALTHCHECK, name, path, value=float(passed))
    metrics.add(HEALTHCHECKS, name, path, "success" if passed else "error")
