"""Convert samples to Prometheus' text format, including values that are read at scrape time.

prometheus-client is imported at the first scrape: the import takes longer than the rest of kproxy's start.
"""

import platform
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import structlog

from kproxy import __version__
from kproxy.telemetry.metrics import Distribution, Labels, Metrics, Sample
from kproxy.telemetry.series import ALL, BUILD_INFO, COLLECTION_FAILURES, SLIS, Series, SeriesType
from kproxy.text import clean

if TYPE_CHECKING:
    from prometheus_client import Metric

log = structlog.stdlib.get_logger(__name__)

LONGEST_LABEL = 512

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The classic text format: OpenMetrics does not allow kube-proxy's gauges that end in `_total`."""

Reader = Callable[[], Iterable[Sample]]
"""Reads values at scrape time; may raise CollectionError."""


class CollectionError(Exception):
    """Values could not be read from the kernel; the scrape continues without them."""


class Exposition:
    """Answers scrapes, one at a time. Each scrape calls the `readers`, which have names.

    `hidden` returns the names of series that the running mode does not have.
    """

    def __init__(
        self,
        metrics: Metrics,
        hidden: Callable[[], Collection[str]],
        readers: Sequence[tuple[str, Reader]],
    ) -> None:
        self._metrics = metrics
        self._hidden = hidden
        self._readers = tuple(readers)
        self._lock = threading.Lock()
        self._registry: Any = None

    def text(self) -> bytes:
        """All series in the classic text format."""
        with self._lock:
            if self._registry is None:
                self._registry = self._make_registry()
            from prometheus_client import generate_latest

            return generate_latest(self._registry)

    def collect(self) -> "Iterator[Metric]":
        """All series, in the interface of prometheus-client (prometheus_client.registry.Collector)."""
        samples = [Sample(BUILD_INFO, _build(), 1.0), *self._metrics.samples()]
        for part, read in self._readers:
            try:
                samples += read()
            except CollectionError as error:
                self._metrics.add(COLLECTION_FAILURES, part)
                log.warning("collection_failed", part=part, reason=str(error))
        by_series: dict[Series, dict[Labels, Sample]] = {}
        for sample in samples:  # a value that was just read replaces a counter's initial 0
            by_series.setdefault(sample.series, {})[sample.labels] = sample
        hidden = self._hidden()
        shown = [each for each in ALL if each.name not in hidden]
        yield from (_family(each, by_series[each].values()) for each in shown if each in by_series)

    def _make_registry(self) -> Any:
        from prometheus_client import CollectorRegistry, ProcessCollector

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return registry


def slis(metrics: Metrics) -> bytes:
    """The outcomes of health checks in the classic text format, for /metrics/slis."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Slis(metrics.samples()))
    return generate_latest(registry)


class _Slis:
    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def collect(self) -> "Iterator[Metric]":
        for series in SLIS:
            yield _family(series, [sample for sample in self._samples if sample.series == series])


def _family(series: Series, samples: Iterable[Sample]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    ordered = sorted(samples, key=lambda sample: sample.labels)
    if series.type is SeriesType.HISTOGRAM:
        histogram = HistogramMetricFamily(series.name, series.help, labels=series.labels)
        bounds = (*map(bound_text, series.buckets), "+Inf")
        for sample in ordered:
            if isinstance(sample.value, Distribution):
                cumulative = accumulate(sample.value.counts)
                buckets = list(zip(bounds, map(float, cumulative), strict=True))
                histogram.add_metric(_cleaned(sample.labels), buckets, sample.value.sum)
        return histogram
    kind = CounterMetricFamily if series.type is SeriesType.COUNTER else GaugeMetricFamily
    family = kind(series.name, series.help, labels=series.labels)
    for sample in ordered:
        if not isinstance(sample.value, Distribution):
            family.add_metric(_cleaned(sample.labels), sample.value)
    return family


def _cleaned(labels: Labels) -> Labels:
    """Clean label values: one that cannot be encoded would fail the whole scrape."""
    return tuple(clean(label, LONGEST_LABEL) for label in labels)


def bound_text(bound: float) -> str:
    """A bucket's bound as Go prints it (`1`, not `1.0`), because stored series have such labels."""
    return f"{bound:g}"


def _build() -> tuple[str, ...]:
    major, minor, *_ = __version__.split(".")
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system().lower()}/{platform.machine()}"
    return major, minor, f"v{__version__}", "", "", "", "", interpreter, system
