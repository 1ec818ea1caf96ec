"""The routing table: what the router pushed, indexed so that a pick costs a lookup and two comparisons.

Rules. A model goes to a SERVING host that has it. A model in `model_backend_mapping` (or an adapter whose base is)
goes to hosts of that engine kind only; if none of them has it, to any of that kind. A model whose hosts are all
away for now has no host, so that the caller can wait or answer 503. Any other name, and None, goes to any
SERVING host, whose engine then says what is wrong or finds the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.routing.host import Host, Policy
from vllm_proxy.common.routing.least_loaded import LeastLoaded
from vllm_proxy.common.routing.round_robin import RoundRobin

POLICIES: Mapping[str, Callable[[], Policy]] = {LeastLoaded.name: LeastLoaded, RoundRobin.name: RoundRobin}

_NOTHING: Mapping[str, int] = {}
_ANY = ""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that can be asked for now, and who has it."""

    name: str
    #: The base model's name for an adapter, empty for a base model.
    base: str
    #: The first host's own JSON object for `GET /v1/models`.
    card_json: bytes
    hosts: tuple[str, ...]


class RoutingTable:
    """The table in force. Empty until the first `apply`; belongs to one event loop."""

    def __init__(self) -> None:
        self.version = 0
        #: Every host of the table by name, also those that take no requests now.
        self.hosts: dict[str, Host] = {}
        self._policy: Policy = LeastLoaded()
        self._pools: dict[str, tuple[Host, ...]] = {}
        self._any: tuple[Host, ...] = ()
        self._rows: tuple[ModelRow, ...] = ()
        self._bases: dict[str, str] = {}
        self._host_bases: dict[str, str] = {}
        self._row_of: dict[str, ModelRow] = {}

    def apply(self, table: pb.WatchTableResponse, local_in_flight: Mapping[str, int] = _NOTHING) -> None:
        """Puts a new table in force. `local_in_flight` is what this process has at each host (by name) right now:
        it is taken out of the hosts' own reports, to which `pick` adds what there is by then."""
        self.version = table.version
        if table.loads_only:
            for report in table.hosts:
                if host := self.hosts.get(report.name):
                    host.show_load(report.load, local_in_flight.get(host.name, 0))
            return
        ordered = sorted(table.hosts, key=lambda host: host.name)
        self.hosts = {host.name: _host(host, local_in_flight.get(host.name, 0)) for host in ordered}
        self._any = tuple(host for host in self.hosts.values() if host.serving)
        self._pools = self._index(ordered, table)
        self._rows = _rows(host for host in ordered if host.state == pb.HOST_STATE_SERVING)
        self._bases = {model.name: model.base or model.name for host in ordered for model in host.models}
        self._host_bases = {
            host.name: next((model.name for model in host.models if not model.base), "") for host in ordered
        }
        self._row_of = {row.name: row for row in self._rows}
        if table.policy != self._policy.name:
            self._policy = POLICIES.get(table.policy, LeastLoaded)()

    def knows(self, model: str) -> bool:
        """Whether it is a model of some host, also of one that is away for now."""
        return model in self._pools

    def candidates(self, model: str | None) -> tuple[Host, ...]:
        """The hosts that a request for `model` may go to, in the order of their names. May be empty."""
        return self._pools.get(model, self._any) if model is not None else self._any

    def pick(
        self,
        model: str | None,
        local_in_flight: Mapping[str, int] = _NOTHING,
        exclude: Collection[str] = (),
    ) -> Host | None:
        """The host for one request, or None if none can take it now. `exclude` holds names of hosts (those already
        tried, those whose session is broken)."""
        pool = model if model is not None and model in self._pools else _ANY
        hosts = self._pools[pool] if pool else self._any
        if exclude:
            hosts = tuple(host for host in hosts if host.name not in exclude)
        return self._policy.choose(pool, hosts, local_in_flight) if hosts else None

    def base_of(self, model: str, host: str = "") -> str:
        """The base model behind a name, which is the name itself unless it is an adapter's. For one that the table
        does not have (yet), what `host` serves; empty if that is not known either."""
        return self._bases.get(model) or self._host_bases.get(host, "")

    def models(self) -> Sequence[ModelRow]:
        """The models of all SERVING hosts, one row per name: base models first, then adapters."""
        return self._rows

    def row(self, name: str) -> ModelRow | None:
        return self._row_of.get(name)

    def _index(self, reports: Sequence[pb.Host], table: pb.WatchTableResponse) -> dict[str, tuple[Host, ...]]:
        pools: dict[str, list[Host]] = {name: [] for name in table.absent_models if name}
        kinds = dict(table.model_backend_mapping)
        for report in reports:
            host = self.hosts[report.name]
            for model in report.models:
                kind = kinds.get(model.name) or kinds.get(model.base)
                if kind:
                    kinds.setdefault(model.name, kind)
                if kind and kind != host.engine:
                    continue
                pool = pools.setdefault(model.name, [])
                if host.serving and (not pool or pool[-1] is not host):
                    pool.append(host)
        for name in kinds.keys() - pools.keys():
            pools[name] = [host for host in self._any if host.engine == kinds[name]]
        pools.pop(_ANY, None)
        return {name: tuple(hosts) for name, hosts in pools.items()}


def _host(report: pb.Host, local: int) -> Host:
    host = Host(report.name, report.incarnation, report.address, report.engine, report.state, report.engine_returns)
    host.show_load(report.load, local)
    return host


def _rows(serving: Iterable[pb.Host]) -> tuple[ModelRow, ...]:
    first: dict[str, pb.Model] = {}
    holders: dict[str, list[str]] = {}
    for report in serving:
        for model in report.models:
            first.setdefault(model.name, model)
            names = holders.setdefault(model.name, [])
            if not names or names[-1] != report.name:
                names.append(report.name)
    rows = [ModelRow(name, model.base, model.card_json, tuple(holders[name])) for name, model in first.items()]
    return tuple(sorted(rows, key=lambda row: bool(row.base)))
