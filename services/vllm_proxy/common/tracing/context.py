"""Where a request stands in its trace: W3C trace context, level 1 (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

#: Version 00 ends here; a later one may go on after a dash, and is read as 00. Ids of zeros and version ff are invalid.
_TRACEPARENT = re.compile(rb"((?!ff)[0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")
_SAMPLED = 1

# Ids are no secrets: a seeded generator costs a tenth of the kernel's.
_random = random.Random(random.SystemRandom().getrandbits(256))


class TraceContext(NamedTuple):
    """One span as others refer to it."""

    trace_id: int
    span_id: int
    sampled: bool

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"

    def child(self) -> TraceContext:
        """A new span of the same trace."""
        return self._replace(span_id=new_span_id())


@dataclass(slots=True)
class OpenSpan:
    """A span that has begun. `started_at` is by the monotonic clock."""

    context: TraceContext
    parent: TraceContext | None
    started_at: float


def accept_traceparent(value: bytes | None) -> str:
    """A client's `traceparent` in the form of version 00, or an empty string if it is not well-formed."""
    match = _TRACEPARENT.fullmatch(value) if value else None
    if match is None or (match[3] is not None and match[1] == b"00"):
        return ""
    return "00" + match[2].decode("ascii")


def parse(traceparent: str) -> TraceContext | None:
    """What `accept_traceparent` or TraceContext wrote; None for anything else."""
    accepted = accept_traceparent(traceparent.encode("ascii", "replace"))
    if not accepted:
        return None
    _, trace_id, span_id, flags = accepted.split("-")
    return TraceContext(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))


def new_trace_id() -> int:
    return _random.getrandbits(128) or 1


def new_span_id() -> int:
    return _random.getrandbits(64) or 1


def chance() -> float:
    """At least 0, below 1."""
    return _random.random()
