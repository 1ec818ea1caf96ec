"""Power of two choices on live load: of two hosts drawn at random, the one with less to do.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 2001): nearly as even as asking
every host, at a constant cost, and without every edge running to the same host on the same stale report.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from vllm_proxy.common.routing.host import Host

#: A waiting request counts this many times on top of being in flight: the engine is full, so the next one waits
#: too, while a bigger engine with more running requests would start it at once.
WAITING_WEIGHT = 4


def load_of(host: Host, local_in_flight: Mapping[str, int]) -> int:
    """What others had there at the last heartbeat, plus what this process has there now, plus the waiting ones."""
    return host.others_in_flight + local_in_flight.get(host.name, 0) + WAITING_WEIGHT * host.waiting


class LeastLoaded:
    name = "least_loaded"

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = (rng or random.Random()).random

    def choose(self, pool: str, hosts: Sequence[Host], local_in_flight: Mapping[str, int]) -> Host:
        count = len(hosts)
        if count == 1:
            return hosts[0]
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        if second >= first:
            second += 1
        one, other = hosts[first], hosts[second]
        return one if load_of(one, local_in_flight) <= load_of(other, local_in_flight) else other
