"""The host's line to the router: reports up, commands down, for as long as the host lives.

Reports go out on connecting, on every heartbeat and soon after `poke`. A command runs in a task of its own and
outlives the stream it came by; its outcome is kept, so that a router that asks again (same id) is answered and
nothing is done twice. An outcome goes out with a report that was taken after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.errors import InternalError, RouterUnavailable, ServiceError
from vllm_proxy.common.lifecycle import cancel_all, spawn
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import Grpc

log = logging.getLogger(__name__)

#: How long `stop` waits for the router to have read the last report.
LAST_REPORT_TIMEOUT_S = 1.0
#: Outcomes that are kept for a router that asks again.
REMEMBERED_RESULTS = 1024


class Registration:
    """`run` it in a task; `stop` it when the host's snapshot says DRAINING or DOWN."""

    def __init__(
        self,
        router_address: str,
        settings: Grpc,
        snapshot: Callable[[], Awaitable[pb.Host]],
        execute: Callable[[pb.Command], Awaitable[None]],
        take_withdrawn: Callable[[], list[str]],
        heartbeat_s: float = 1.0,
    ) -> None:
        """`snapshot` is the host's whole state now. `execute` carries out one command and raises a ServiceError if it
        fails. `take_withdrawn` hands over adapters that were unloaded at the engine's own port since it was last
        called. `heartbeat_s` holds until the router names another."""
        self._address = router_address
        self._settings = settings
        self._snapshot = snapshot
        self._execute = execute
        self._take_withdrawn = take_withdrawn
        self._heartbeat_s = heartbeat_s
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._connected = False
        self._commands: set[asyncio.Task[Any]] = set()
        self._running: set[int] = set()
        self._results: OrderedDict[int, pb.CommandResult] = OrderedDict()
        #: Not yet written: outcomes by command id, and withdrawn names.
        self._unsent: dict[int, pb.CommandResult] = {}
        self._withdrawn: list[str] = []

    @property
    def connected(self) -> bool:
        """Whether the router has this host's stream now."""
        return self._connected

    def poke(self) -> None:
        """Something changed: report soon. Calls before the next report count as one."""
        self._news.set()

    async def run(self) -> None:
        """Reports until `stop`; reconnects for ever. What `snapshot` raises ends it."""
        stopping = asyncio.create_task(self._stopping.wait())
        stream: asyncio.Task[bool] | None = None
        try:
            async with open_channel(self._address, self._settings) as channel:
                stub = router_pb2_grpc.RouterServiceStub(channel)
                pause_s = self._settings.reconnect_min_s
                while not self._stopping.is_set():
                    stream = asyncio.create_task(self._stream(stub))
                    await asyncio.wait({stream, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if not stream.done() and self._connected:
                        await asyncio.wait({stream}, timeout=LAST_REPORT_TIMEOUT_S)
                    if not stream.done():
                        break
                    if stream.result():
                        pause_s = self._settings.reconnect_min_s
                    await asyncio.wait({stopping}, timeout=pause_s)
                    pause_s = min(2 * pause_s, self._settings.reconnect_max_s)
                await cancel_all({stream} if stream else set())
        finally:
            await cancel_all({stopping} | ({stream} if stream else set()) | self._commands)

    def stop(self) -> None:
        """Asks for one last report; `run` returns when the router has read it or LAST_REPORT_TIMEOUT_S is over."""
        self._stopping.set()
        self._news.set()

    async def _stream(self, stub: router_pb2_grpc.RouterServiceStub) -> bool:
        """One stream, to its end. True if the router had accepted it."""
        call = stub.Register(wait_for_ready=True)
        try:
            # Before the first report is taken: it must not be old when the router comes.
            await call.wait_for_connection()
            reading = asyncio.create_task(self._read(call))
            reporting = asyncio.create_task(self._report(call, reading))
            try:
                done, _ = await asyncio.wait({reading, reporting}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_all({reading, reporting})
            for task in done:
                task.result()
            why = "the router ended the stream"
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as e:
            why = from_rpc_error(e, RouterUnavailable).message if isinstance(e, grpc.RpcError) else str(e)
        finally:
            call.cancel()
            accepted, self._connected = self._connected, False
        if not self._stopping.is_set():
            log.warning("router lost" if accepted else "router refused", extra={"detail": why})
        return accepted

    async def _report(self, call: Any, reading: asyncio.Task[None]) -> None:
        while True:
            last = self._stopping.is_set()
            self._news.clear()
            results = list(self._unsent.values())
            host = await self._snapshot()
            self._withdrawn += self._take_withdrawn()
            withdrawn = list(self._withdrawn)
            await call.write(pb.RegisterRequest(host=host, results=results, withdrawn_adapters=withdrawn))
            for result in results:
                self._unsent.pop(result.command_id, None)
            del self._withdrawn[: len(withdrawn)]
            if last:
                await call.done_writing()
                await asyncio.wait({reading})
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._news.wait()

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            if not self._connected:
                self._connected = True
                log.info("registered", extra={"router": self._address})
            if response.heartbeat_ms:
                self._heartbeat_s = response.heartbeat_ms / 1000
                # The pause that is under way may be longer than the router waits.
                self._news.set()
            for command in response.commands:
                self._begin(command)

    def _begin(self, command: pb.Command) -> None:
        number = command.command_id
        if number in self._running:
            return
        if (known := self._results.get(number)) is not None:
            self._unsent[number] = known
            self._news.set()
            return
        self._running.add(number)
        spawn(self._commands, self._carry_out(command), f"command {number}")

    async def _carry_out(self, command: pb.Command) -> None:
        kind = command.WhichOneof("action") or "none"
        result = pb.CommandResult(command_id=command.command_id)
        try:
            await self._execute(command)
        except ServiceError as e:
            log.warning("command failed", extra={"command": kind, "reason": e.reason, "detail": e.message})
            result.reason, result.message = e.reason, e.message
        except Exception:
            error_id = secrets.token_hex(4)
            log.exception("command failed", extra={"command": kind, "error_id": error_id})
            result.reason = InternalError.reason
            result.message = f"The engine host met an unexpected fault (error id {error_id})."
        self._running.discard(command.command_id)
        self._results[command.command_id] = self._unsent[command.command_id] = result
        while len(self._results) > REMEMBERED_RESULTS:
            self._results.popitem(last=False)
        self._news.set()
