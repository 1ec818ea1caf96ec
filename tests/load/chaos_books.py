"""The books after a chaos run: what the simulators produced, what clients received, what auth admitted and settled.

Admissions are read from where no restart forgets them: a trigger of SQLite's that the run installs, Redis' own
append-only file.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_proxy.auth.redis_batch import Keys, unpack
from vllm_proxy.auth.store import LeaseOpened, LedgerEntry
from vllm_proxy.engine_host.engines.sim_journal import COUNTS

_TRIGGER = """
CREATE TABLE chaos_admissions AS SELECT * FROM leases WHERE 0;
CREATE TRIGGER chaos_admitted AFTER INSERT ON leases BEGIN
    INSERT INTO chaos_admissions SELECT * FROM leases WHERE lease_id = NEW.lease_id;
END;
"""


FAULTS = ("settled != journal", "settled < received", "settled > journal", "lease closed twice", "lease never closed")
#: What the stamps of two processes may differ by.
_STAMP_MS = 50


@dataclass(frozen=True, slots=True)
class Produced:
    """One request in one engine."""

    host_pid: int
    tokens: int
    #: Whether the engine itself wrote its end; not if it was killed.
    ended: bool


def produced(folder: Path) -> dict[str, list[Produced]]:
    """By the request's label."""
    found: dict[str, list[Produced]] = defaultdict(list)
    for path in folder.glob("*.jsonl"):
        counts = path.with_suffix(".counts").read_bytes()
        begun: dict[int, str] = {}
        ended: set[int] = set()
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "label" in row:
                begun[row["number"]] = row["label"]
            else:
                ended.add(row["number"])
        for number, label in begun.items():
            tokens = sum(COUNTS.unpack_from(counts, number * COUNTS.size))
            found[label].append(Produced(int(path.stem), tokens, number in ended))
    return found


@dataclass(slots=True)
class Book:
    """What auth made durable."""

    admissions: list[LeaseOpened] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)


def watch_sqlite(path: Path) -> None:
    db = sqlite3.connect(path, timeout=10)
    db.executescript(_TRIGGER)
    db.close()


def sqlite_book(path: Path) -> Book:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    db.row_factory = sqlite3.Row
    book = Book(
        [_from_row(LeaseOpened, row) for row in db.execute("SELECT * FROM chaos_admissions")],
        [_from_row(LedgerEntry, row) for row in db.execute("SELECT * FROM ledger ORDER BY id")],
    )
    db.close()
    return book


def _from_row(kind, row: sqlite3.Row):
    return kind(*(row[name] for name in kind._fields))


def redis_book(append_only: Path, prefix: str) -> Book:
    keys = Keys(prefix)
    leases, ledger = keys["leases"].encode(), keys["ledger"].encode()
    book = Book()
    for path in sorted(append_only.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3])):
        for command, *arguments in _commands(path.read_bytes()):
            if command.upper() == b"HSET" and arguments[0] == leases:
                book.admissions += [LeaseOpened(*unpack(value)) for value in arguments[2::2]]
            elif command.upper() == b"XADD" and arguments[0] == ledger:
                book.ledger += [LedgerEntry(*row) for row in unpack(arguments[-1])]
    return book


def _commands(content: bytes) -> Iterator[list[bytes]]:
    """The commands of an append-only file; a torn one at its end is left out."""
    at = 0
    try:
        while at < len(content):
            end = content.index(b"\r\n", at)
            if content[at : at + 1] != b"*":  # a comment
                at = end + 2
                continue
            count, at = int(content[at + 1 : end]), end + 2
            parts = []
            for _ in range(count):
                end = content.index(b"\r\n", at)
                size, at = int(content[at + 1 : end]), end + 2
                parts.append(content[at : at + size])
                at += size + 2
            yield parts
    except (ValueError, IndexError):
        return


@dataclass(slots=True)
class Balance:
    """What was found. Every number under `faults` must be zero."""

    requests: int = 0
    settled_tokens: int = 0
    produced_tokens: int = 0
    on_killed_hosts: int = 0
    #: Of these, whose edge died as well.
    nobody_left: int = 0
    corrections: int = 0
    lapsed: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    details: list[str] = field(default_factory=list)

    def fault(self, name: str, detail: str = "") -> None:
        self.faults[name] = self.faults.get(name, 0) + 1
        if len(self.details) < 20:
            self.details.append(f"{name}: {detail}")


def balance(
    book: Book,
    engines: Mapping[str, Sequence[Produced]],
    received: Mapping[str, int],
    killed_at_ms: Mapping[int, int],
) -> Balance:
    """`received`: tokens that each request's client has. `killed_at_ms`: edges and hosts that were killed. If both of a
    request's are before its settlement is durable, nobody is left who could say what it used."""
    result = Balance()
    settled: dict[str, int] = defaultdict(int)
    closed_at_ms: dict[str, list[int]] = defaultdict(list)
    settled_at_ms: dict[str, int] = {}
    for row in book.ledger:
        settled[row.request_id] += row.prompt_tokens + row.completion_tokens
        settled_at_ms[row.request_id] = row.settled_at_ms
        if row.closes:
            closed_at_ms[row.lease_id].append(row.settled_at_ms)
        result.corrections += not row.closes
        result.lapsed += row.closes and not row.attempt
    edges: dict[str, int] = {}
    for lease in book.admissions:
        edges[lease.request_id] = int(lease.owner_id.split("-")[-2])
        if len(closed_at_ms[lease.lease_id]) != 1:
            name = "lease closed twice" if closed_at_ms[lease.lease_id] else "lease never closed"
            result.fault(name, lease.request_id)
    for label in sorted(engines.keys() | settled.keys()):
        runs, told = engines.get(label, ()), f"{label}: settled {settled[label]}, received {received.get(label)}"
        total = sum(run.tokens for run in runs)
        result.requests += 1
        result.settled_tokens += settled[label]
        result.produced_tokens += total
        # Settled only after the host had died: its last words may be lost.
        last_ms = settled_at_ms.get(label, 0)
        deaths = [killed_at_ms[run.host_pid] for run in runs if run.host_pid in killed_at_ms]
        if any(death_ms <= last_ms + _STAMP_MS for death_ms in deaths):
            result.on_killed_hosts += 1
            if settled[label] > total:
                result.fault("settled > journal", f"{told}, {runs}")
            elif settled[label] < received.get(label, 0) and killed_at_ms.get(edges[label], last_ms) < last_ms:
                result.nobody_left += 1
            elif settled[label] < received.get(label, 0):
                result.fault("settled < received", f"{told}, {runs}")
        elif settled[label] != total:
            result.fault("settled != journal", f"{told}, {runs}")
    return result


def most_at_once(book: Book, account: bytes) -> int:
    """The greatest number of the account's leases that were open at the same time."""
    closed = {row.lease_id: row.settled_at_ms for row in book.ledger if row.closes}
    events = []
    for lease in book.admissions:
        if lease.account == account:
            events.append((lease.opened_at_ms, 1))
            if lease.lease_id in closed:
                events.append((closed[lease.lease_id], -1))
    most = running = 0
    # Of the same millisecond the closings first: the order within it is not written down.
    for _, step in sorted(events):
        running += step
        most = max(most, running)
    return most


def most_over_rate(book: Book, account: bytes, per_second: float, burst: int) -> int:
    """How many admissions of some stretch of time were more than the burst and the rate allow; at most 0 if the limit
    held. A millisecond is what the stamps may be off by."""
    times = sorted(lease.opened_at_ms for lease in book.admissions if lease.account == account)
    worst = -burst
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            allowed = burst + int(per_second * (times[last] - begin + 1) / 1000)
            worst = max(worst, last - first + 1 - allowed)
    return worst


def tokens_over_rate(book: Book, account: bytes, per_minute: int, burst: int) -> tuple[int, int]:
    """By how many tokens some stretch of time exceeds the rate, and what the overruns of reservations allow it to."""
    actual: dict[str, int] = defaultdict(int)
    for row in book.ledger:
        actual[row.lease_id] += row.charged_tokens
    leases = sorted((lease for lease in book.admissions if lease.account == account), key=lambda o: o.opened_at_ms)
    overrun = sum(max(0, actual[lease.lease_id] - lease.reserved_tokens) for lease in leases)
    worst = -burst
    for first, begin in enumerate(leases):
        used = 0
        for lease in leases[first:]:
            used += actual[lease.lease_id]
            allowed = burst + per_minute * (lease.opened_at_ms - begin.opened_at_ms + 1) // 60_000
            worst = max(worst, used - allowed)
    return worst, overrun
