"""A second admission, written as plainly as can be, which the real one is held against.

It remembers every request since the beginning and works out each answer by replaying all of them with what is known
by now. It shares no code with the real one, and it is slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

SECOND = 1_000_000_000


class ScopeLimits(NamedTuple):
    qps: float | None = None
    concurrent: int | None = None
    tokens_per_minute: int | None = None
    quota: int | None = None


@dataclass
class Request:
    lease_id: str
    key: str
    owner: str
    scopes: tuple[str, ...]
    at: int
    expires: int
    #: Of the quota, and of the tokens per minute of each scope.
    reserved: int
    held: dict[str, int]
    report: tuple[int, int] | None = None
    closed_at: int | None = None
    #: Who said the last word: attempt and source ("nobody", "edge", "host", "tool"), and how much.
    attempt: int = 0
    source: str = "nobody"
    charged: int = 0
    #: What the first word said, and what came on top of it when.
    first_charged: int = 0
    more: list[tuple[int, int]] = field(default_factory=list)
    forgotten: bool = False

    @property
    def is_open(self) -> bool:
        return self.closed_at is None


class Obstacle(NamedTuple):
    scope: str
    limit: str
    #: None: waiting does not help.
    wait: Fraction | None


class Reference:
    def __init__(self, limits: Mapping[str, ScopeLimits], ttl: int, grace: int, owner_grace: int) -> None:
        self.limits = limits
        self.ttl, self.grace, self.owner_grace = ttl, grace, owner_grace
        self.requests: dict[str, Request] = {}
        self.sessions: dict[str, int] = {}
        self.away: dict[str, int] = {}

    # Limits

    def of(self, scope: str) -> list[Request]:
        return [request for request in self.requests.values() if scope in request.scopes]

    def running(self, scope: str) -> int:
        return sum(request.is_open for request in self.of(scope))

    def reserved(self, scope: str) -> int:
        return sum(request.reserved for request in self.of(scope) if request.is_open)

    def charged(self, scope: str) -> int:
        return sum(request.charged for request in self.of(scope))

    def obstacles(self, scopes: tuple[str, ...], prompt: int, wanted: int, now: int) -> list[Obstacle]:
        found = []
        for scope in scopes:
            limits = self.limits.get(scope, ScopeLimits())
            if limits.quota is not None:
                left = limits.quota - self.charged(scope)
                needed = max(1, prompt + min(1, wanted - prompt))
                if left < needed:
                    found.append(Obstacle(scope, "quota", None))
                elif left - self.reserved(scope) < needed:
                    found.append(Obstacle(scope, "quota", Fraction(SECOND)))
            if limits.concurrent is not None and self.running(scope) >= limits.concurrent:
                found.append(Obstacle(scope, "concurrency", Fraction(SECOND)))
            if limits.qps is not None:
                rate = Fraction(limits.qps)
                level = _level([(request.at, 1) for request in self.of(scope)], rate / SECOND, now)
                if (excess := level + 1 - max(1, rate)) > 0:
                    found.append(Obstacle(scope, "requests_per_second", excess / rate * SECOND))
            if limits.tokens_per_minute is not None:
                burst = limits.tokens_per_minute
                rate = Fraction(burst, 60 * SECOND)
                if (excess := _level(self._spent(scope), rate, now) + min(wanted, burst) - burst) > 0:
                    found.append(Obstacle(scope, "tokens_per_minute", excess / rate))
        return found

    def _spent(self, scope: str) -> list[tuple[int, int]]:
        """Tokens by the time at which they count: what is held from the beginning, put right by the first word; what
        exceeds it from when that was known."""
        spent = []
        for request in self.of(scope):
            held = request.held[scope]
            if request.is_open:
                spent.append((request.at, held))
                continue
            assert request.closed_at is not None
            spent.append((request.at, min(held, request.first_charged)))
            spent.append((request.closed_at, max(0, request.first_charged - held)))
            spent += request.more
        return spent

    def admit(self, lease_id: str, key: str, owner: str, scopes: tuple[str, ...], wanted: int, now: int) -> Request:
        reserved, held = wanted, {}
        for scope in scopes:
            limits = self.limits.get(scope, ScopeLimits())
            if limits.quota is not None:
                reserved = min(reserved, limits.quota - self.charged(scope) - self.reserved(scope))
            held[scope] = wanted if limits.tokens_per_minute is None else min(wanted, limits.tokens_per_minute)
        request = self.requests[lease_id] = Request(lease_id, key, owner, scopes, now, now + self.ttl, reserved, held)
        return request

    # Leases

    def connect(self, owner: str) -> None:
        self.sessions[owner] = self.sessions.get(owner, 0) + 1
        self.away.pop(owner, None)

    def disconnect(self, owner: str, now: int) -> None:
        self.sessions[owner] -= 1
        if self.sessions[owner] == 0:
            self.away[owner] = now + self.owner_grace

    def renew(self, owner: str, now: int) -> None:
        for request in self.requests.values():
            if request.is_open and request.owner == owner:
                request.expires = now + self.ttl

    def settle(self, lease_id: str, attempt: int, source: str, tokens: int, now: int) -> bool:
        request = self.requests.get(lease_id)
        if request is None or request.forgotten:
            return False
        if request.is_open:
            if source == "host":
                if request.report is not None and attempt < request.report[0]:
                    return False
                if self.sessions.get(request.owner) or request.owner in self.away:
                    request.report = attempt, tokens
                    return True
            elif request.report is not None and request.report[0] >= attempt:
                attempt, tokens = request.report
                source = "host"
            self._close(request, attempt, source, tokens, now)
            return True
        better = attempt > request.attempt or (
            attempt == request.attempt and source == "host" and request.source != "host"
        )
        if not better:
            return (attempt, source) == (request.attempt, request.source)
        request.more.append((now, max(0, tokens - request.charged)))
        request.attempt, request.source, request.charged = attempt, source, tokens
        return True

    def _close(self, request: Request, attempt: int, source: str, tokens: int, now: int) -> None:
        request.closed_at = now
        request.attempt, request.source = attempt, source
        request.charged = request.first_charged = tokens

    def tick(self, now: int) -> None:
        for request in self.requests.values():
            if request.is_open and request.expires <= now:
                self._end(request, now)
        gone = {owner for owner, until in self.away.items() if until <= now}
        for request in self.requests.values():
            if request.is_open and request.report is not None and request.owner in gone:
                self._end(request, now)
        for owner in gone:
            del self.away[owner]
        for request in self.requests.values():
            if request.closed_at is not None and request.closed_at <= now - self.grace:
                request.forgotten = True

    def _end(self, request: Request, now: int) -> None:
        if request.report is not None:
            self._close(request, request.report[0], "host", request.report[1], now)
        else:
            self._close(request, 0, "nobody", 0, now)

    def restart(self, now: int) -> None:
        """Sessions are gone, owners may come back, leases live for another ttl. Of what a request held of the tokens
        per minute, no more is known than what it reserved."""
        self.sessions.clear()
        self.away.clear()
        for request in self.requests.values():
            if request.is_open:
                request.expires = now + self.ttl
                request.held = {scope: min(held, request.reserved) for scope, held in request.held.items()}
                self.away[request.owner] = now + self.owner_grace
            elif request.closed_at is not None and request.closed_at < now - self.grace:
                request.forgotten = True


def _level(events: list[tuple[int, int]], rate: Fraction, now: int) -> Fraction:
    """A leaky bucket's level after all events, none of which is in the future."""
    level, before = Fraction(0), 0
    for at, amount in sorted(events):
        level = max(Fraction(0), level - rate * (at - before)) + amount
        before = at
    return max(Fraction(0), level - rate * (now - before))
