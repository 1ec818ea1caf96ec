"""Loads and unloads an adapter on all its hosts as one act: everywhere, or as it was before.

A call is carried out to its end even if the caller goes away, and calls for one name come one after another.
Hosts that come later are brought up to date by `convergence`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.errors import (
    AdapterExists,
    AdapterNotFound,
    EngineUnavailable,
    InvalidAdapter,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    ServiceError,
    from_reason,
)
from vllm_proxy.common.lifecycle import cancel_all
from vllm_proxy.router.convergence import Convergence
from vllm_proxy.router.declaration_store import Declaration
from vllm_proxy.router.declarations import Declarations, adapters_of, base_names
from vllm_proxy.router.hosts import HostBook
from vllm_proxy.router.link import HostLink
from vllm_proxy.router.named_locks import NamedLocks

log = logging.getLogger(__name__)

T = TypeVar("T")
Host = tuple[pb.Host, HostLink]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class DeclaredAdapter:
    """A declaration and what became of it."""

    declaration: Declaration
    loaded_on: list[str]
    errors: list[str]


class Adapters:
    def __init__(
        self,
        hosts: HostBook,
        declarations: Declarations,
        convergence: Convergence,
        locks: NamedLocks,
        timeout_s: float,
    ) -> None:
        self._hosts = hosts
        self._declarations = declarations
        self._convergence = convergence
        self._locks = locks
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()

    async def load(self, spec: pb.AdapterSpec) -> list[str]:
        """Loads an adapter on every SERVING host of its base and declares it. Returns the hosts' names.

        Raises the error of a host that could not, its name in the metadata; AdapterExists if the name is taken and
        `spec.replace` is false; RequestTimeout; EngineUnavailable if there is no host.
        """
        if not _NAME.fullmatch(spec.name):
            raise InvalidAdapter("An adapter's name has letters, digits and ._- only, at most 128, and no . first.")
        if not spec.path:
            raise InvalidAdapter("An adapter needs the path of its folder.")
        return await self._alone(spec.name, lambda: self._load(spec))

    async def unload(self, name: str) -> list[str]:
        """Withdraws an adapter and unloads it wherever it is. Returns the names of the hosts that had it.

        Raises AdapterNotFound; the error of a host that could not (the adapter stays withdrawn, and the host is asked
        again later).
        """
        return await self._alone(name, lambda: self._unload(name))

    def declared(self) -> list[DeclaredAdapter]:
        live = self._hosts.live()
        return [
            DeclaredAdapter(
                declaration,
                [r.name for r, _ in live if declaration.name in adapters_of(r) and declaration.host in ("", r.name)],
                self._convergence.errors(declaration.name),
            )
            for declaration in self._declarations.all()
        ]

    async def close(self) -> None:
        """Cancels what runs; a first load that was under way is taken back by the next router."""
        await cancel_all(self._tasks)

    async def _alone(self, name: str, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        await self._locks.acquire(name)

        async def run() -> T | Exception:
            try:
                return await act()
            except Exception as e:
                # Handed to the caller as a value: he may be gone.
                return e
            finally:
                self._locks.release(name)
                self._convergence.look_at_all()

        task = asyncio.create_task(run(), name=f"adapter {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        outcome = await asyncio.shield(task)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _load(self, spec: pb.AdapterSpec) -> list[str]:
        await self._hosts.settled()
        base, hosts = self._targets(spec)
        before = {report.name: adapters_of(report).get(spec.name) for report, _ in hosts}
        holders = [name for name, model in before.items() if model is not None]
        if holders and not spec.replace:
            raise AdapterExists(f"The adapter {spec.name!r} is loaded already.", metadata={"host": holders[0]})
        if not self._declarations.of(spec.name) and not holders:
            # Should this router die before the end, the next one takes back what was loaded.
            await self._declarations.withdraw(spec.name)
        answers = {}
        for report, link in hosts:
            replace = before[report.name] is not None
            answers[report.name] = link.load(pb.AdapterSpec(name=spec.name, path=spec.path, base=base, replace=replace))
        failures = await self._failures(answers)
        try:
            if failures:
                raise _worst(failures)
            digests = {m.digest for host in answers if (m := self._model_on(host, spec.name)) and m.digest}
            declaration = Declaration(
                name=spec.name,
                path=spec.path,
                base=base,
                host="",
                digest=digests.pop() if len(digests) == 1 else "",
                declared_at_ms=self._declarations.stamp_ms(),
            )
            await self._declarations.declare(declaration)
        except Exception as e:
            log.warning("adapter not loaded", extra={"adapter": spec.name, "detail": str(e)})
            await self._take_back(spec.name, base, {h: m for h, m in before.items() if h not in failures})
            for host in answers:
                self._declarations.not_applied(host, spec.name)
            raise
        for report, _ in hosts:
            self._declarations.applied(report, declaration)
        self._convergence.forget_failures(spec.name)
        loaded = [report.name for report, _ in hosts]
        log.info("adapter loaded", extra={"adapter": spec.name, "base": base, "hosts": loaded})
        return loaded

    async def _unload(self, name: str) -> list[str]:
        await self._hosts.settled()
        holders = [(report, link) for report, link in self._hosts.live() if name in adapters_of(report)]
        if not holders and not self._declarations.of(name):
            raise AdapterNotFound(f"The adapter {name!r} does not exist.")
        await self._declarations.withdraw(name)
        self._convergence.forget_failures(name)
        answers = {report.name: link.unload(name) for report, link in holders}
        failures = await self._failures(answers)
        # A host without it, or gone with it, is as wanted.
        kept = {host: e for host, e in failures.items() if not isinstance(e, (AdapterNotFound, EngineUnavailable))}
        if kept:
            raise _worst(kept)
        unloaded = [report.name for report, _ in holders]
        log.info("adapter unloaded", extra={"adapter": name, "hosts": unloaded})
        return unloaded

    def _targets(self, spec: pb.AdapterSpec) -> tuple[str, list[Host]]:
        """The base's name and the hosts that serve it."""
        serving = self._hosts.live(serving=True)
        bases = {names[0]: None for report, _ in serving if (names := base_names(report))}
        if not bases:
            raise EngineUnavailable("No engine host is serving, so no adapter can be loaded.")
        if any(spec.name in base_names(report) for report, _ in serving):
            raise InvalidAdapter(f"{spec.name!r} is the name of a base model.")
        if not spec.base and len(bases) > 1:
            raise InvalidRequest(f"Several base models are served; name one of them: {', '.join(sorted(bases))}.")
        base = spec.base or next(iter(bases))
        hosts = [(report, link) for report, link in serving if base in base_names(report)]
        if not hosts:
            raise ModelNotFound(f"No live engine host serves {base!r}; there is {', '.join(sorted(bases))}.")
        return base, hosts

    async def _failures(self, answers: Mapping[str, asyncio.Future[pb.CommandResult]]) -> dict[str, ServiceError]:
        """Waits for all hosts, at most `timeout_s`; the error of each that failed, by host."""
        if answers:
            await asyncio.wait(answers.values(), timeout=self._timeout_s)
        failures: dict[str, ServiceError] = {}
        for host, answer in answers.items():
            error: ServiceError | None = None
            if not answer.done():
                answer.cancel()
                error = RequestTimeout(f"no answer within {self._timeout_s:g} s")
            elif raised := answer.exception():
                error = raised if isinstance(raised, ServiceError) else EngineUnavailable()
            elif reason := answer.result().reason:
                error = from_reason(reason, answer.result().message)
            if error is not None:
                error.metadata = {**error.metadata, "host": host}
                failures[host] = error
        return failures

    async def _take_back(self, name: str, base: str, before: Mapping[str, pb.Model | None]) -> None:
        """Brings the hosts that had loaded it back to what they had. A host that failed, went away or did not answer
        is looked after by convergence, should it have loaded it all the same."""
        answers = {}
        for host, earlier in before.items():
            found = self._hosts.find(host)
            if found is None:
                continue
            if earlier is None:
                answers[host] = found[1].unload(name)
            else:
                spec = pb.AdapterSpec(name=name, path=earlier.path, base=base, replace=True)
                answers[host] = found[1].load(spec)
        for host, error in (await self._failures(answers)).items():
            log.error("adapter not taken back", extra={"adapter": name, "host": host, "detail": error.message})

    def _model_on(self, host: str, name: str) -> pb.Model | None:
        found = self._hosts.find(host)
        return adapters_of(found[0]).get(name) if found else None


def _worst(failures: Mapping[str, ServiceError]) -> ServiceError:
    """One host's error, as the same class, saying which host and how many more."""
    host = min(failures)
    error = failures[host]
    more = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
    return type(error)(
        f"Host {host}: {error.message}{more}", retry_after_s=error.retry_after_s, metadata=dict(error.metadata)
    )
