"""Every metric of the router."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from vllm_proxy.api.router.v1 import router_pb2 as pb

_STATES = {
    pb.HOST_STATE_STARTING: "starting",
    pb.HOST_STATE_SERVING: "serving",
    pb.HOST_STATE_DRAINING: "draining",
    pb.HOST_STATE_DOWN: "down",
}


class RouterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._hosts = Gauge(
            "vllm_proxy_router_hosts",
            "Engine hosts by state; those that went away a while ago are down.",
            ["state"],
            registry=registry,
        )
        self.watchers = Gauge("vllm_proxy_router_watchers", "Edge workers that watch the table.", registry=registry)
        self.table_pushes = Counter("vllm_proxy_router_table_pushes", "Tables sent to edge workers.", registry=registry)
        self._declarations = Gauge("vllm_proxy_router_declarations", "Adapters that are declared.", registry=registry)
        self._adapter_calls = Counter(
            "vllm_proxy_router_adapter_calls",
            "Adapter loads and unloads asked for.",
            ["kind", "outcome"],
            registry=registry,
        )
        self._replays = Counter(
            "vllm_proxy_router_adapter_replays",
            "Adapter commands to hosts that were not as declared.",
            ["kind", "outcome"],
            registry=registry,
        )

    def watch_declarations(self, count: Callable[[], int]) -> None:
        self._declarations.set_function(count)

    def show_hosts(self, hosts: list[pb.Host]) -> None:
        for state, name in _STATES.items():
            self._hosts.labels(name).set(sum(host.state == state for host in hosts))

    def adapter_call(self, kind: str, ok: bool) -> None:
        self._adapter_calls.labels(kind, _outcome(ok)).inc()

    def replayed(self, kind: str, ok: bool) -> None:
        self._replays.labels(kind, _outcome(ok)).inc()


def _outcome(ok: bool) -> str:
    return "ok" if ok else "failed"
