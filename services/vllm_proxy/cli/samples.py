"""What a service counts, from its metrics in Prometheus' text format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families


class Samples:
    """One moment's values. A metric that is not there is 0."""

    def __init__(self, text: bytes | str = b"") -> None:
        self._values: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text.decode() if isinstance(text, bytes) else text):
            for sample in family.samples:
                self._values[sample.name].append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series that have these labels."""
        return sum(
            value
            for have, value in self._values.get(name, ())
            if all(have.get(key) == wanted for key, wanted in labels.items())
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for have, value in self._values.get(name, ()):
            sums[tuple(have.get(label, "") for label in labels)] += value
        return dict(sums)

    def buckets(self, name: str) -> dict[float, float]:
        """Of a histogram, summed over its series: how many observations were at most so large."""
        sums: dict[float, float] = defaultdict(float)
        for have, value in self._values.get(f"{name}_bucket", ()):
            sums[float(have["le"])] += value
        return dict(sums)


def rate(now: float, before: float, seconds: float) -> float:
    """Per second. A counter that fell was begun anew."""
    return (now - before if now >= before else now) / seconds if seconds > 0 else 0.0


def quantile(now: Mapping[float, float], before: Mapping[float, float], q: float) -> float | None:
    """Of what a histogram observed between two moments, as Prometheus' histogram_quantile estimates it. None: nothing
    was observed."""
    bounds = sorted(now)
    fresh = any(now[bound] < before.get(bound, 0) for bound in bounds)
    counts = [now[bound] - (0 if fresh else before.get(bound, 0)) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return None
    rank = q * counts[-1]
    below, count_below = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= rank and count > count_below:
            if bound == float("inf"):
                return below
            return below + (bound - below) * (rank - count_below) / (count - count_below)
        below, count_below = bound, count
    return below


def merged(histograms: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """Histograms with the same buckets as one."""
    sums: dict[float, float] = defaultdict(float)
    for histogram in histograms:
        for bound, count in histogram.items():
            sums[bound] += count
    return dict(sums)
