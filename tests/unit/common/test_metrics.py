from __future__ import annotations

import socket

import pytest
from prometheus_client import CollectorRegistry

from vllm_proxy.common.metrics import serve_metrics
from vllm_proxy.common.settings import ConfigError


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            serve_metrics(port, CollectorRegistry())
    assert str(caught.value) == f"metrics_port: 127.0.0.1:{port}, for Prometheus metrics: Address already in use"


def test_without_a_port_nothing_is_served() -> None:
    serve_metrics(None, CollectorRegistry())
