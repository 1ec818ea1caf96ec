"""One host's Register stream as the router's logic sees it: commands out, results back.

A command survives the break of its stream: it is sent again, under the same id, when the same process comes back
(which answers a command that it knows already from memory), and fails when another process takes the name or the
host stays away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.errors import EngineUnavailable


class HostLink:
    """The stream of one incarnation of a host."""

    def __init__(self, name: str, incarnation: str, command_ids: Iterator[int]) -> None:
        """`command_ids` are shared by all links, and no id ever comes twice, also not after a restart of the router."""
        self._command_ids = command_ids
        self.name = name
        self.incarnation = incarnation
        self._queue: list[pb.Command] = []
        self._ready = asyncio.Event()
        self._closed = False
        self._pending: dict[int, tuple[pb.Command, asyncio.Future[pb.CommandResult]]] = {}

    @property
    def closed(self) -> bool:
        """True once its stream has ended or another one took its place."""
        return self._closed

    def load(self, spec: pb.AdapterSpec) -> asyncio.Future[pb.CommandResult]:
        return self._send(pb.Command(command_id=next(self._command_ids), load=spec))

    def unload(self, name: str) -> asyncio.Future[pb.CommandResult]:
        return self._send(pb.Command(command_id=next(self._command_ids), unload=name))

    def _send(self, command: pb.Command) -> asyncio.Future[pb.CommandResult]:
        """The future fails with EngineUnavailable if the host is lost first."""
        answer: asyncio.Future[pb.CommandResult] = asyncio.get_running_loop().create_future()
        pending = self._pending
        number = command.command_id

        def done(ended: asyncio.Future[pb.CommandResult]) -> None:
            # A caller that gave up wants no second try, and leaves no "exception was never retrieved" behind.
            pending.pop(number, None)
            _ = ended.cancelled() or ended.exception()

        answer.add_done_callback(done)
        pending[number] = (command, answer)
        self._queue.append(command)
        self._ready.set()
        return answer

    def resolve(self, result: pb.CommandResult) -> None:
        """Takes the outcome of a command. An unknown or repeated one is ignored."""
        _, answer = self._pending.pop(result.command_id, (None, None))
        if answer is not None and not answer.done():
            answer.set_result(result)

    async def outgoing(self) -> list[pb.Command]:
        """Waits for commands and takes them all. Empty: the link is closed."""
        while not self._closed:
            await self._ready.wait()
            self._ready.clear()
            queue, self._queue = self._queue, []
            if not self._closed and (wanted := [command for command in queue if self._wanted(command)]):
                return wanted
        return []

    def _wanted(self, command: pb.Command) -> bool:
        _, answer = self._pending.get(command.command_id, (None, None))
        return answer is not None and not answer.done()

    def close(self) -> None:
        """Ends `outgoing`. Pending commands stay, for `take_over` or `fail`."""
        self._closed = True
        self._ready.set()

    def take_over(self, older: HostLink) -> None:
        """Sends again what the same process had not answered on its earlier stream."""
        self._pending, older._pending = older._pending, {}
        self._queue = [command for command, _ in self._pending.values()]
        if self._queue:
            self._ready.set()

    def fail(self, why: str) -> None:
        """Gives up what is pending."""
        for _, answer in list(self._pending.values()):
            if not answer.done():
                answer.set_exception(EngineUnavailable(f"Host {self.name}: {why}."))
