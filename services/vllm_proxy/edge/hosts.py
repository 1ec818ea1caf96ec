"""The engine hosts that this worker can send to: a session to each, and the choice among them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import grpc.aio

from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.lifecycle import cancel_all, spawn
from vllm_proxy.common.response_ids import host_tag
from vllm_proxy.common.routing.table import RoutingTable
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import Grpc
from vllm_proxy.edge.host_session import HostSession


@dataclass(slots=True)
class _Connection:
    channel: grpc.aio.Channel
    session: HostSession
    task: asyncio.Task[None]


class Hosts:
    """Holds the routing table and keeps a session to every host in it.

    A host whose session is broken takes no requests, whatever the table says. A host that left the table keeps its
    session until its last request there has ended. Close it with `close`.
    """

    def __init__(self, edge_id: str, settings: Grpc) -> None:
        self.table = RoutingTable()
        self._edge_id = edge_id
        self._settings = settings
        #: By (host name, address).
        self._connections: dict[tuple[str, str], _Connection] = {}
        self._sessions: dict[str, HostSession] = {}
        self._in_flight: dict[str, int] = {}
        self._broken: frozenset[str] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: asyncio.Future[None] | None = None

    def apply(self, table: router_pb2.WatchTableResponse) -> None:
        """Puts a pushed table in force and dials the hosts that are new in it."""
        self.table.apply(table, self._in_flight)
        self._sessions = {}
        for host in self.table.hosts.values():
            key = (host.name, host.address)
            if key not in self._connections:
                self._connections[key] = self._dial(host.name, host.address)
            self._sessions[host.name] = self._connections[key].session
        self._notice()

    def pick(self, model: str | None, exclude: Collection[str] = ()) -> HostSession | None:
        """The host for one request. None if no host can take it now. `exclude` names hosts that were tried."""
        if self._broken:
            exclude = self._broken.union(exclude)
        host = self.table.pick(model, self._in_flight, exclude)
        return self._sessions[host.name] if host is not None else None

    def holder(self, tag: str) -> HostSession | None:
        """The host whose stored responses have this tag; None if it is away."""
        return next((s for name, s in self._sessions.items() if s.connected and host_tag(name) == tag), None)

    def engine_of(self, session: HostSession) -> tuple[str, int]:
        """Tells an engine that was started again from the one before, also if its host stayed."""
        host = self.table.hosts.get(session.name)
        return session.incarnation, host.engine_returns if host is not None else 0

    def base_of(self, model: str, host: str) -> str:
        """The base model behind a name; see RoutingTable."""
        return self.table.base_of(model, host)

    async def wait_changed(self) -> None:
        """Returns when the table or a session changed, so that a pick may go differently."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def connected(self, name: str) -> bool:
        session = self._sessions.get(name)
        return session is not None and session.connected

    @property
    def any_serving(self) -> bool:
        return any(host.serving and self.connected(host.name) for host in self.table.hosts.values())

    def channel_to(self, name: str) -> grpc.aio.Channel | None:
        """The open channel to a host, for maintenance calls."""
        host = self.table.hosts.get(name)
        connection = self._connections.get((name, host.address)) if host is not None else None
        return connection.channel if connection is not None else None

    def retire_absent(self) -> None:
        """Lets go of hosts that left the table and have no request left. Called from time to time."""
        for key, connection in list(self._connections.items()):
            if self._sessions.get(key[0]) is not connection.session and not connection.session.in_flight:
                del self._connections[key]
                spawn(self._tasks, self._hang_up(connection), "hang-up")

    async def close(self, timeout_s: float = 1.0) -> None:
        """Sends what is queued, ends the sessions in good order, and closes the channels."""
        connections = list(self._connections.values())
        tasks = {connection.task for connection in connections}
        for connection in connections:
            connection.session.finish()
        if any(connection.session.connected for connection in connections):
            await asyncio.wait(tasks, timeout=timeout_s)
        await cancel_all(self._tasks)
        for connection in connections:
            await connection.channel.close()

    def _dial(self, name: str, address: str) -> _Connection:
        channel = open_channel(address, self._settings)
        session = HostSession(name, channel, self._edge_id, self._settings, self._in_flight, self._notice)
        return _Connection(channel, session, spawn(self._tasks, session.run(), f"session-{name}"))

    async def _hang_up(self, connection: _Connection) -> None:
        await cancel_all({connection.task})
        await connection.channel.close()

    def _notice(self) -> None:
        self._broken = frozenset(name for name, session in self._sessions.items() if not session.connected)
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
