"""The hosts of a model in turn, by name, so that the turn survives hosts that come and go."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter

from vllm_proxy.common.routing.host import Host

_name = attrgetter("name")


class RoundRobin:
    name = "round_robin"

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def choose(self, pool: str, hosts: Sequence[Host], local_in_flight: Mapping[str, int]) -> Host:
        after = bisect_right(hosts, self._last.get(pool, ""), key=_name)
        host = hosts[after % len(hosts)]
        self._last[pool] = host.name
        return host
