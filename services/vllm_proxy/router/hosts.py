"""Which engine hosts live: registrations, heartbeats, timeouts.

A host is in the table from its first report until its stream breaks or it stays silent for `timeout_s`. A restarted
router begins with the hosts that its predecessor wrote down, so that it never pushes an empty table to edges that
have a good one: such a host is *assumed* until it registers again, or dropped after `settle_s` (which gives it time
to reconnect). Edges see for themselves which hosts answer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.errors import InvalidRequest, PermissionDenied
from vllm_proxy.router.link import HostLink

log = logging.getLogger(__name__)

#: How long a host that went away is remembered: its models answer "unavailable" and not "unknown" meanwhile.
DEPARTED_MEMORY_S = 600.0
_REPLACED_MEMORY = 16


@dataclass(slots=True)
class _Entry:
    report: pb.Host
    seen_s: float
    #: None: assumed.
    link: HostLink | None
    #: In the table.
    present: bool = True
    #: Its pending commands were given up.
    lost: bool = False
    why_away: str = ""
    #: What it served when it last served anything; a host that starts again does not know yet.
    models: frozenset[str] = frozenset()
    replaced: deque[str] = field(default_factory=lambda: deque(maxlen=_REPLACED_MEMORY))

    def __post_init__(self) -> None:
        self.take(self.report)

    def take(self, report: pb.Host) -> None:
        self.report = report
        if report.models:
            self.models = frozenset(model.name for model in report.models)


class HostBook:
    """All hosts by name. Not thread-safe; belongs to one event loop."""

    def __init__(
        self,
        timeout_s: float,
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._timeout_s = timeout_s
        self._settle_s = settle_s
        self._clock = clock
        self._wall_clock = wall_clock
        #: Called with a host's name when it came or went, or its state, address or models changed.
        self.on_change: list[Callable[[str], None]] = []
        #: Called when a host reported another load, and nothing else.
        self.on_load: list[Callable[[], None]] = []
        self._entries: dict[str, _Entry] = {}
        # From the time on, so that a restarted router never repeats an id that a host remembers.
        self._command_ids = itertools.count(time.time_ns())
        self._settled = asyncio.Event()
        self._settled.set()

    # ---- what hosts do

    def restore(self, reports: Iterable[pb.Host]) -> None:
        """Assumes hosts that an earlier router knew. Call once, first."""
        for report in reports:
            self._entries[report.name] = _Entry(report, self._clock(), None)
        self._update_settled()

    def attach(self, report: pb.Host) -> HostLink:
        """A stream opens with its first report. It takes the place of any other stream of that name.

        Raises PermissionDenied for a process that was replaced by a live one: two hosts have the same name.
        """
        if not report.name or not report.incarnation or not report.address:
            raise InvalidRequest("A host reports its name, its incarnation and its address.")
        link = HostLink(report.name, report.incarnation, self._command_ids)
        entry = self._entries.get(report.name)
        if entry is None:
            entry = self._entries[report.name] = _Entry(report, self._clock(), link, present=False)
        else:
            self._replace(entry, link)
        entry.link, entry.lost = link, False
        log.info("host registered", extra={"host": report.name, "incarnation": report.incarnation})
        self._update_settled()
        self.report(link, report)
        return link

    def _replace(self, entry: _Entry, link: HostLink) -> None:
        older = entry.link
        if older is None:
            return
        if older.incarnation == link.incarnation:
            link.take_over(older)
        else:
            if link.incarnation in entry.replaced and not older.closed:
                raise PermissionDenied(
                    f"Another process is host {link.name} now; give each engine host a name of its own."
                )
            entry.replaced.append(older.incarnation)
            older.fail("it was restarted")
        older.close()

    def report(self, link: HostLink, report: pb.Host) -> bool:
        """Takes a heartbeat. False: the link is closed and its report does not count. Raises InvalidRequest."""
        if (report.name, report.incarnation) != (link.name, link.incarnation):
            raise InvalidRequest("A host keeps its name and its incarnation as long as its stream lasts.")
        entry = self._entries.get(link.name)
        if entry is None or entry.link is not link or link.closed:
            return False
        before, was_present = entry.report, entry.present
        report.last_seen_ms = int(self._wall_clock() * 1000)
        entry.take(report)
        entry.seen_s, entry.present, entry.lost = self._clock(), True, False
        if not was_present or _shape(before) != _shape(report):
            if before.state != report.state or not was_present:
                state = pb.HostState.Name(report.state).removeprefix("HOST_STATE_").lower()
                log.info("host state", extra={"host": link.name, "state": state, "detail": report.detail})
            self._changed(link.name)
        elif before.load != report.load:
            for notify in self.on_load:
                notify()
        return True

    def detach(self, link: HostLink) -> None:
        """The stream ended: the host is out of the table at once. Its commands are kept until it times out."""
        link.close()
        entry = self._entries.get(link.name)
        if entry is not None and entry.link is link:
            self._leave(entry, "its connection ended")

    # ---- time

    def expire(self) -> None:
        """Drops hosts that were silent for too long, and forgets those that went away long ago."""
        now = self._clock()
        for name, entry in list(self._entries.items()):
            if now < self._deadline(entry):
                continue
            if entry.present:
                self._leave(entry, "it did not report in time")
            if entry.link is not None and not entry.lost:
                entry.link.fail("it stopped reporting")
            entry.lost = True
            if now >= entry.seen_s + DEPARTED_MEMORY_S:
                del self._entries[name]
                self._changed(name)
        self._update_settled()

    async def run(self) -> None:
        """Calls `expire` when it is due, until cancelled."""
        while True:
            waits = [self._deadline(entry) for entry in self._entries.values() if not entry.lost]
            due_in_s = min(waits, default=self._clock() + self._timeout_s) - self._clock()
            await asyncio.sleep(min(max(due_in_s, 0.01), self._timeout_s))
            self.expire()

    async def settled(self) -> None:
        """Returns when no host is merely assumed: at most `settle_s` after the start."""
        await self._settled.wait()

    # ---- what is known

    def table(self) -> list[pb.Host]:
        """The hosts of the routing table, by name."""
        return [entry.report for _, entry in sorted(self._entries.items()) if entry.present]

    def absent_models(self) -> list[str]:
        """Models of hosts that went away a short while ago or are starting again, and that no host in the table has."""
        here = {model.name for report in self.table() for model in report.models}
        known = {name for entry in self._entries.values() for name in entry.models}
        return sorted(known - here)

    def everyone(self) -> list[pb.Host]:
        """All hosts by name, those that went away a short while ago as DOWN."""
        shown = []
        for _, entry in sorted(self._entries.items()):
            report = pb.Host()
            report.CopyFrom(entry.report)
            if not entry.present:
                report.state, report.detail = pb.HOST_STATE_DOWN, entry.why_away
            shown.append(report)
        return shown

    def live(self, *, serving: bool = False) -> list[tuple[pb.Host, HostLink]]:
        """The hosts that can be commanded, by name; only SERVING ones if asked."""
        return [
            (entry.report, entry.link)
            for _, entry in sorted(self._entries.items())
            if entry.present
            and entry.link is not None
            and not (serving and entry.report.state != pb.HOST_STATE_SERVING)
        ]

    def find(self, name: str) -> tuple[pb.Host, HostLink] | None:
        """One host that can be commanded."""
        entry = self._entries.get(name)
        if entry is None or not entry.present or entry.link is None:
            return None
        return entry.report, entry.link

    # ----

    def _changed(self, name: str) -> None:
        for notify in self.on_change:
            notify(name)

    def _deadline(self, entry: _Entry) -> float:
        return entry.seen_s + (self._timeout_s if entry.link is not None else self._settle_s)

    def _leave(self, entry: _Entry, why: str) -> None:
        entry.present, entry.why_away = False, why
        log.warning("host left", extra={"host": entry.report.name, "detail": why})
        self._changed(entry.report.name)

    def _update_settled(self) -> None:
        if any(entry.link is None and entry.present for entry in self._entries.values()):
            self._settled.clear()
        else:
            self._settled.set()


def _shape(report: pb.Host) -> tuple[object, ...]:
    """What makes a report news to an edge. Not the cards: vLLM stamps them anew each time it is asked."""
    return (
        report.incarnation,
        report.engine_returns,
        report.address,
        report.engine,
        report.state,
        report.detail,
        [(model.name, model.base, model.digest, model.origin, model.path) for model in report.models],
    )
