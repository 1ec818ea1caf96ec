"""A lease: what one admitted request holds until it is settled, and what is remembered of it afterwards.

admit ──▶ OPEN ──────────────── settle (edge, tool; host whose edge is gone) ──▶ CLOSED
           │  ▲  └─ report (host whose edge is connected) ─▶ OPEN with report ──▶ CLOSED
           │  └─ renew                                                              ▲  │ correction
           └─ nobody renews: charged by its report, or nothing (attempt 0) ─────────┘◀─┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from vllm_proxy.auth.limiter import Reservation
from vllm_proxy.auth.prompt_estimate import Script
from vllm_proxy.auth.scope import Scope


class Operation(IntEnum):
    """The numbers are the proto's."""

    UNSPECIFIED = 0
    INFERENCE = 1
    READ = 2
    ADMIN = 3


class Source(IntEnum):
    """Who counted. The numbers are the proto's; NOBODY stands in the ledger for a lease that lapsed."""

    NOBODY = 0
    EDGE = 1
    HOST = 2
    TOOL = 3


class Outcome(IntEnum):
    """How the request ended. The numbers are the proto's."""

    UNSPECIFIED = 0
    FINISHED = 1
    CANCELLED = 2
    FAILED = 3
    NOT_SENT = 4


class Usage(NamedTuple):
    """Tokens as the engine counted them; cached ones are among the prompt's."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def charged(self, cached_weight_ppm: int) -> int:
        """Tokens to pay for; the cached ones at their weight, in millionths, together rounded up."""
        cached = -(-self.cached * cached_weight_ppm // 1_000_000)
        return self.prompt - self.cached + cached + self.completion


class Settlement(NamedTuple):
    """How somebody says that a request ended. `attempt` counts from 1; 0 means that nobody said anything."""

    lease_id: str
    attempt: int
    source: Source
    outcome: Outcome
    usage: Usage
    model: str = ""
    host: str = ""
    #: The base behind `model`, or `model` itself; empty if it is not known.
    base_model: str = ""


@dataclass(slots=True)
class Lease:
    """An open lease."""

    lease_id: str
    #: SHA-256 of the key that pays.
    account: bytes
    owner_id: str
    request_id: str
    model: str
    #: Tokens that it holds of the quota.
    reserved_tokens: int
    opened_at_ms: int
    user: str
    expires_ns: int
    #: What counts it: its key's scope, its user's, and so on.
    scopes: tuple[Scope, ...] = ()
    #: What it holds of their tokens per minute.
    reservations: tuple[Reservation, ...] = ()
    #: A host's count that waits for the owner's word.
    report: Settlement | None = None
    #: The text that the prompt was estimated from; 0 bytes: it was not.
    prompt_bytes: int = 0
    prompt_script: Script = Script.UNSPECIFIED
    prompt_estimate: int = 0


@dataclass(slots=True)
class ClosedLease:
    """What is remembered for settle_grace_s, so that a better count can still replace the one that was charged."""

    account: bytes
    user: str
    request_id: str
    opened_at_ms: int
    attempt: int
    source: Source
    usage: Usage
    charged: int
    closed_ns: int
    #: Empty if it closed before this process started.
    scopes: tuple[Scope, ...] = ()
