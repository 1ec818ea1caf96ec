"""The hosts of a model in turn, by name, so that the turn survives hosts that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_proxy.common.routing.host import Host


class RoundRobin:
    name = "round_robin"

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def choose(self, pool: str, hosts: Sequence[Host], local_in_flight: Mapping[str, int]) -> Host:
        last = self._last.get(pool, "")
        host = next((host for host in hosts if host.name > last), hosts[0])
        self._last[pool] = host.name
        return host
