"""What is read out of metrics."""

from __future__ import annotations

import pytest

from vllm_proxy.cli.samples import Samples, quantile, rate

TEXT = """\
# TYPE requests counter
requests_total{route="chat",status="200"} 3
requests_total{route="chat",status="429"} 2
requests_total{route="models",status="200"} 5
# TYPE ttft_seconds histogram
ttft_seconds_bucket{route="chat",le="0.1"} 1
ttft_seconds_bucket{route="chat",le="0.2"} 3
ttft_seconds_bucket{route="chat",le="+Inf"} 4
ttft_seconds_bucket{route="models",le="0.1"} 1
ttft_seconds_bucket{route="models",le="0.2"} 1
ttft_seconds_bucket{route="models",le="+Inf"} 1
ttft_seconds_count{route="chat"} 4
ttft_seconds_sum{route="chat"} 1
"""


def test_sums_over_series():
    samples = Samples(TEXT)
    assert samples.total("requests_total") == 10
    assert samples.total("requests_total", status="200") == 8
    assert samples.total("nothing") == 0
    assert samples.by("requests_total", "route") == {("chat",): 5, ("models",): 5}
    assert samples.buckets("ttft_seconds") == {0.1: 2, 0.2: 4, float("inf"): 5}


def test_a_counter_that_began_anew_counts_from_zero():
    assert rate(30, 10, 2) == 10
    assert rate(4, 10, 2) == 2


@pytest.mark.parametrize(
    ("q", "before", "seconds"),
    [
        (0.5, {}, 0.15),  # the second of four, half way through the second bucket
        (1.0, {}, 0.2),  # nothing is known beyond the last bound
        (0.5, {0.1: 1, 0.2: 3, float("inf"): 3}, 0.2),  # one observation since, above all bounds
        (0.5, {0.1: 1, 0.2: 3, float("inf"): 4}, None),  # none since
        (0.5, {0.1: 9, 0.2: 9, float("inf"): 9}, 0.15),  # began anew
    ],
)
def test_quantiles_of_what_came_between(q: float, before: dict[float, float], seconds: float | None):
    found = quantile({0.1: 1, 0.2: 3, float("inf"): 4}, before, q)
    assert found == (None if seconds is None else pytest.approx(seconds))
