"""What a scrape reads of the requests that ended."""

from prometheus_client import generate_latest

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.metrics import HostMetrics


def test_a_scrape_reads_what_requests_counted() -> None:
    metrics = HostMetrics()
    finished = auth_pb2.OUTCOME_FINISHED
    metrics.request_ended("chat", finished, "", UsageMeter(3, 1, 2), 0.005, 0.3)
    metrics.request_ended("chat", finished, "", UsageMeter(30, 0, 20), 0.02, 400.0)
    metrics.request_ended("unknown", auth_pb2.OUTCOME_NOT_SENT, "ROUTE_NOT_FOUND", UsageMeter(), None, 0.0)
    metrics.adapter_operation("load", True, 1.5)
    metrics.adapter_operation("load", False, 0.5)
    lines = generate_latest(metrics.registry).decode().splitlines()
    prefix = "vllm_proxy_engine_host"
    for line in (
        'requests_total{outcome="finished",reason="",route="chat"} 2.0',
        'requests_total{outcome="not_sent",reason="ROUTE_NOT_FOUND",route="unknown"} 1.0',
        'tokens_total{kind="prompt"} 33.0',
        'tokens_total{kind="cached"} 1.0',
        'tokens_total{kind="completion"} 22.0',
        'adapter_operations_total{kind="load",outcome="failed"} 1.0',
        'adapter_operation_seconds_total{kind="load"} 2.0',
        # A bound is in its own bucket; what exceeds all bounds is only in the last.
        'time_to_first_byte_seconds_bucket{le="0.005"} 1.0',
        'time_to_first_byte_seconds_bucket{le="0.025"} 2.0',
        "time_to_first_byte_seconds_count 2.0",
        'request_duration_seconds_bucket{le="320.0"} 2.0',
        'request_duration_seconds_bucket{le="+Inf"} 3.0',
    ):
        assert any(known.startswith(f"{prefix}_{line}") for known in lines), line
