"""Brings hosts to what is declared: replays adapters to a host that comes back, takes back what was withdrawn.

One task per host, one command at a time. What fails is tried again with growing pauses, or at once when the host
restarts; a name that an admin call is changing is left to that call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.errors import ServiceError, from_reason
from vllm_proxy.common.lifecycle import cancel_all, spawn
from vllm_proxy.router.declaration_store import Declaration
from vllm_proxy.router.declarations import Declarations, Step
from vllm_proxy.router.hosts import HostBook
from vllm_proxy.router.link import HostLink
from vllm_proxy.router.named_locks import NamedLocks

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Failure:
    #: A restarted host is tried at once.
    incarnation: str
    again_at_s: float
    next_pause_s: float
    error: str


class Convergence:
    def __init__(
        self,
        hosts: HostBook,
        declarations: Declarations,
        locks: NamedLocks,
        command_timeout_s: float,
        on_step: Callable[[str, bool], None] = lambda kind, ok: None,
    ) -> None:
        """`on_step` is told of each replayed load or unload and whether it worked."""
        self._hosts = hosts
        self._declarations = declarations
        self._locks = locks
        self._command_timeout_s = command_timeout_s
        self._on_step = on_step
        self._tasks: set[asyncio.Task[Any]] = set()
        self._working: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        #: By host and adapter.
        self._failed: dict[tuple[str, str], _Failure] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def look_at(self, host: str) -> None:
        """Something changed at a host or for it."""
        if host in self._working:
            self._again.add(host)
        else:
            task = spawn(self._tasks, self._converge(host), f"converge {host}")
            self._working[host] = task

    def look_at_all(self) -> None:
        for report, _ in self._hosts.live(serving=True):
            self.look_at(report.name)

    def forget_failures(self, name: str) -> None:
        """Of an adapter that is declared anew."""
        self._failed = {key: value for key, value in self._failed.items() if key[1] != name}

    def errors(self, name: str) -> list[str]:
        """`host: error` of each host that could not do what is declared for an adapter."""
        return [
            f"{host}: {failure.error}" for (host, failed), failure in sorted(self._failed.items()) if failed == name
        ]

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        await cancel_all(self._tasks)

    async def _converge(self, host: str) -> None:
        try:
            while True:
                self._again.discard(host)
                found = self._hosts.find(host)
                if found is None or found[0].state != pb.HOST_STATE_SERVING:
                    return
                step = self._next_step(found[0])
                if step is not None:
                    await self._take(step, *found)
                elif host not in self._again:
                    return
        finally:
            del self._working[host]

    def _next_step(self, report: pb.Host) -> Step | None:
        now = time.monotonic()
        earliest: float | None = None
        for step in self._declarations.steps(report):
            if step.name in self._locks:
                continue
            failure = self._failed.get((report.name, step.name))
            if failure is None or failure.incarnation != report.incarnation or failure.again_at_s <= now:
                return step
            earliest = failure.again_at_s if earliest is None else min(failure.again_at_s, earliest)
        if earliest is not None:
            self._wake(report.name, earliest - now)
        return None

    def _wake(self, host: str, delay_s: float) -> None:
        if timer := self._timers.pop(host, None):
            timer.cancel()
        self._timers[host] = asyncio.get_running_loop().call_later(delay_s, self.look_at, host)

    async def _take(self, step: Step, report: pb.Host, link: HostLink) -> None:
        key = (report.name, step.name)
        await self._locks.acquire(step.name)
        try:
            if step not in self._declarations.steps(report):
                return
            kind = "unload" if step.declaration is None else "load"
            error = await self._carry_out(step, link)
        finally:
            self._locks.release(step.name)
        found = self._hosts.find(report.name)
        if error is None and step.declaration is not None:
            self._declarations.applied(report, step.declaration)
        still = found is not None and step in self._declarations.steps(found[0])
        if error is None and still:
            # It said that it did, and reports otherwise: do not ask it again without a pause.
            error = "the host reports otherwise"
        self._on_step(kind, error is None)
        if error is None:
            self._failed.pop(key, None)
            log.info(f"adapter {kind} replayed", extra={"adapter": step.name, "host": report.name})
            return
        pause_s = FIRST_PAUSE_S
        if (earlier := self._failed.get(key)) is not None and earlier.incarnation == report.incarnation:
            pause_s = earlier.next_pause_s
        again_at_s = time.monotonic() + pause_s
        self._failed[key] = _Failure(report.incarnation, again_at_s, min(2 * pause_s, LONGEST_PAUSE_S), error)
        log.warning(f"adapter {kind} failed", extra={"adapter": step.name, "host": report.name, "detail": error})

    async def _carry_out(self, step: Step, link: HostLink) -> str | None:
        """The error, or None."""
        if step.declaration is None:
            answer = link.unload(step.name)
        else:
            answer = link.load(spec_of(step.declaration, replace=step.replace))
        try:
            async with asyncio.timeout(self._command_timeout_s):
                result = await answer
        except ServiceError as e:
            return e.message
        except TimeoutError:
            return f"no answer within {self._command_timeout_s:g} s"
        if result.reason and not (step.declaration is None and result.reason == "ADAPTER_NOT_FOUND"):
            return from_reason(result.reason, result.message).message
        return None


def spec_of(declaration: Declaration, *, replace: bool) -> pb.AdapterSpec:
    return pb.AdapterSpec(name=declaration.name, path=declaration.path, base=declaration.base, replace=replace)
