"""The adapters that are wanted, and what a host must do to have them: pure decisions, kept beside the store.

Three kinds of knowledge. A declaration for all hosts of a base comes from LoadAdapter. A declaration for one host
comes from a load at that engine's own port (origin NATIVE). A withdrawn name must not stay loaded anywhere that the
router loaded it: it stands from a withdrawal until the name is declared again, and also while a first load is under
way, so that a router that dies half-way takes it back when it returns.

An unload at one engine's own port ends the declaration for that host. One for all hosts then leaves that host out;
it ends when no other live host has the adapter.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.router.declaration_store import Declaration, DeclarationStore, StoredState


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a host must do. `declaration` None: unload."""

    name: str
    declaration: Declaration | None
    replace: bool = False


def adapters_of(report: pb.Host) -> dict[str, pb.Model]:
    return {model.name: model for model in report.models if model.base}


def base_names(report: pb.Host) -> list[str]:
    """The names of the host's base model; the first is its own."""
    return [model.name for model in report.models if not model.base]


class Declarations:
    """What is wanted, in memory and in the store. Memory changes after the store has it, unless said otherwise."""

    def __init__(
        self,
        store: DeclarationStore,
        state: StoredState,
        later: Callable[[Awaitable[None]], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`later` runs a write that nobody waits for."""
        self._wall_clock = wall_clock
        self._last_stamp_ms = max((d.declared_at_ms for d in state.declarations), default=0)
        self._store = store
        self._later = later
        self._declared = {(d.name, d.host): d for d in state.declarations}
        self._withdrawn = set(state.withdrawn)
        #: host -> (incarnation, name -> when the declaration that it carried out was made).
        self._applied: dict[str, tuple[str, dict[str, int]]] = {}

    def stamp_ms(self) -> int:
        """The time for a new declaration: later than every other one's, since it tells them apart."""
        self._last_stamp_ms = max(int(self._wall_clock() * 1000), self._last_stamp_ms + 1)
        return self._last_stamp_ms

    def __len__(self) -> int:
        return len(self._declared)

    def all(self) -> list[Declaration]:
        return sorted(self._declared.values(), key=lambda d: (d.name, d.host))

    def of(self, name: str) -> list[Declaration]:
        return [d for d in self._declared.values() if d.name == name]

    async def declare(self, declaration: Declaration) -> None:
        await self._store.declare(declaration)
        for other in self.of(declaration.name):
            del self._declared[other.name, other.host]
        self._remember(declaration)

    async def withdraw(self, name: str) -> None:
        await self._store.withdraw(name)
        for declaration in self.of(name):
            del self._declared[name, declaration.host]
        self._withdrawn.add(name)

    def wanted_on(self, report: pb.Host) -> dict[str, Declaration]:
        """What a host should have. Its own declarations win over those for all."""
        bases = base_names(report)
        wanted = {
            d.name: d
            for d in self._declared.values()
            if not d.host and d.base in bases and report.name not in d.except_hosts
        }
        wanted.update((d.name, d) for d in self._declared.values() if d.host == report.name and d.base in bases)
        return wanted

    def steps(self, report: pb.Host) -> list[Step]:
        """What keeps a host from what is wanted, oldest declaration first, unloads before."""
        loaded, wanted = adapters_of(report), self.wanted_on(report)
        unloads = [
            Step(name, None)
            for name, model in loaded.items()
            if model.origin == pb.ADAPTER_ORIGIN_DECLARED and name in self._withdrawn and name not in wanted
        ]
        loads = [
            Step(d.name, d, replace=d.name in loaded)
            for d in sorted(wanted.values(), key=lambda d: d.declared_at_ms)
            if d.name not in loaded or self._outdated(report, loaded[d.name], d)
        ]
        return unloads + loads

    def _outdated(self, report: pb.Host, model: pb.Model, declaration: Declaration) -> bool:
        incarnation, applied = self._applied.get(report.name, ("", {}))
        if incarnation == report.incarnation and model.name in applied:
            return applied[model.name] != declaration.declared_at_ms
        # Not loaded by this router since it started: the weights tell.
        return bool(model.digest and declaration.digest and model.digest != declaration.digest)

    def applied(self, report: pb.Host, declaration: Declaration) -> None:
        """A host has carried out a declaration; it is not asked again for it, whatever digest it shows."""
        incarnation, names = self._applied.get(report.name, ("", {}))
        if incarnation != report.incarnation:
            names = {}
            self._applied[report.name] = (report.incarnation, names)
        names[declaration.name] = declaration.declared_at_ms

    def not_applied(self, host: str, name: str) -> None:
        """It is not known what a host has under a name."""
        self._applied.get(host, ("", {}))[1].pop(name, None)

    def adopt_native(self, report: pb.Host, busy: Mapping[str, object]) -> None:
        """Declares what was loaded at the engine's own port, for that host. Written later; names in `busy` are
        being changed and are left alone."""
        for name, model in adapters_of(report).items():
            if model.origin != pb.ADAPTER_ORIGIN_NATIVE or name in busy:
                continue
            known = self._declared.get((name, report.name))
            if known is not None and (known.digest, known.path) == (model.digest, model.path):
                continue
            declaration = Declaration(name, model.path, model.base, report.name, model.digest, self.stamp_ms())
            self._remember(declaration)
            self.applied(report, declaration)
            self._later(self._store.declare(declaration))

    def unloaded_natively(self, host: str, names: Iterable[str], others: Iterable[pb.Host]) -> None:
        """Ends what was unloaded at the engine's own port. `others` are the other live hosts. Written later."""
        elsewhere = {name for report in others for name in adapters_of(report)}
        for name in names:
            self.not_applied(host, name)
            if self._declared.pop((name, host), None) is not None:
                self._later(self._store.forget(name, host))
            for_all = self._declared.get((name, ""))
            if for_all is None:
                continue
            if name in elsewhere:
                kept = dataclasses.replace(for_all, except_hosts=for_all.except_hosts | {host})
                self._declared[name, ""] = kept
                self._later(self._store.declare(kept))
            else:
                del self._declared[name, ""]
                self._later(self._store.forget(name, ""))

    def _remember(self, declaration: Declaration) -> None:
        self._declared[declaration.name, declaration.host] = declaration
        self._withdrawn.discard(declaration.name)
