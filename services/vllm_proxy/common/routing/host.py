"""An engine host as a routing policy sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_proxy.api.router.v1 import router_pb2 as pb


@dataclass(slots=True, eq=False)
class Host:
    """One host of a table. `address` is where its EngineService listens. Only its load changes while the table is in
    force."""

    name: str
    incarnation: str
    address: str
    engine: str
    state: pb.HostState
    #: How often its engine came back under the same incarnation.
    engine_returns: int = 0
    #: Requests there that this process did not send, as far as the last heartbeat tells.
    others_in_flight: int = 0
    #: Requests that wait inside the engine: it is saturated.
    waiting: int = 0

    def show_load(self, load: pb.HostLoad, local: int) -> None:
        """Takes the load of a heartbeat. `local`: what this process has there right now."""
        reported = max(load.in_flight, load.running + load.waiting)
        self.others_in_flight = max(0, reported - local)
        self.waiting = load.waiting

    @property
    def serving(self) -> bool:
        return self.state == pb.HOST_STATE_SERVING


class Policy(Protocol):
    """Chooses one of several hosts. Kept across tables, so it may hold state per pool."""

    name: str

    def choose(self, pool: str, hosts: Sequence[Host], local_in_flight: Mapping[str, int]) -> Host:
        """One of `hosts`, which are SERVING, in the order of their names, and at least one. `pool` names the set
        they come from (a model; empty: all hosts); there are only as many pools as models."""
