"""One key's limits and what it holds of them. Checking consumes nothing; taking is a step of its own."""

from __future__ import annotations

from typing import NamedTuple

from vllm_proxy.auth.keys import ApiKey
from vllm_proxy.auth.lease import Usage
from vllm_proxy.auth.limiter import NS_PER_SECOND, Bucket, Reservation, ReservingBucket, per_minute, per_second
from vllm_proxy.auth.limits import Limits
from vllm_proxy.auth.store import Balance
from vllm_proxy.common.errors import QuotaExceeded, RateLimited

#: When a running request may end is not known; a second is what a client is told to wait for one.
RETRY_WHEN_ONE_ENDS_NS = NS_PER_SECOND


class Refusal(NamedTuple):
    """Why not. `retry_after_ns` None: waiting does not help."""

    reason: str
    message: str
    limit_name: str = ""
    retry_after_ns: int | None = None


class Account:
    __slots__ = ("balance", "limits", "quota", "requests", "reserved_tokens", "running", "tokens")

    def __init__(self, limits: Limits, balance: Balance, now_ns: int) -> None:
        self.balance = balance
        self.limits = Limits()
        self.requests: Bucket | None = None
        self.tokens: ReservingBucket | None = None
        #: Open leases, and the tokens that they hold of the quota.
        self.running = 0
        self.reserved_tokens = 0
        self.apply(limits, now_ns)

    def apply(self, limits: Limits, now_ns: int) -> None:
        """Takes new limits; what was used of the old ones stays used."""
        if limits.qps is None:
            self.requests = None
        elif self.requests is None:
            self.requests = Bucket(per_second(limits.qps), now_ns)
        elif limits.qps != self.limits.qps:
            self.requests.change_rate(per_second(limits.qps), now_ns)
        if limits.tokens_per_minute is None:
            self.tokens = None
        elif self.tokens is None:
            self.tokens = ReservingBucket(per_minute(limits.tokens_per_minute), now_ns)
        elif limits.tokens_per_minute != self.limits.tokens_per_minute:
            self.tokens.change_rate(per_minute(limits.tokens_per_minute), now_ns)
        self.limits = limits

    def refusal(self, key: ApiKey, prompt_tokens: int, wanted_tokens: int, now_ns: int) -> Refusal | None:
        """The limit that stands in the way longest, so that a client that waits as told passes all of them."""
        refusals = []
        if key.quota is not None and (refusal := self._over_quota(key.quota, prompt_tokens)):
            if refusal.retry_after_ns is None:
                return refusal
            refusals.append(refusal)
        if self.requests is not None and (wait_ns := self.requests.wait_ns(1, now_ns)):
            refusals.append(
                _limited(
                    "requests_per_second",
                    f"The limit of {self.limits.qps:g} requests per second of this API key is reached.",
                    wait_ns,
                )
            )
        if self.limits.concurrent is not None and self.running >= self.limits.concurrent:
            refusals.append(
                _limited(
                    "concurrency",
                    f"The limit of {self.limits.concurrent} concurrent requests of this API key is reached: "
                    f"{self.running} are running.",
                    RETRY_WHEN_ONE_ENDS_NS,
                )
            )
        if self.tokens is not None:
            needed = min(wanted_tokens, self.tokens.rate.burst)
            if wait_ns := self.tokens.wait_ns(needed, now_ns):
                refusals.append(
                    _limited(
                        "tokens_per_minute",
                        f"The limit of {self.limits.tokens_per_minute} tokens per minute of this API key is reached: "
                        f"this request reserves {needed}, {self.tokens.state(now_ns).remaining} are left now.",
                        wait_ns,
                    )
                )
        return max(refusals, key=lambda refusal: refusal.retry_after_ns or 0) if refusals else None

    def _over_quota(self, quota: int, prompt_tokens: int) -> Refusal | None:
        """A small rest may still be used: a request needs room for its prompt, and reserves at most what is left.
        Reservations together never exceed the quota."""
        left = quota - self.balance.charged_tokens
        needed = max(1, prompt_tokens)
        if left < needed:
            return Refusal(
                QuotaExceeded.reason,
                f"The quota of {quota} tokens of this API key is used up: {self.balance.charged_tokens} are used, this "
                f"request needs at least {needed}.",
                "quota",
            )
        if left - self.reserved_tokens < needed:
            return Refusal(
                QuotaExceeded.reason,
                f"The quota of {quota} tokens of this API key has no room now: {self.balance.charged_tokens} are used "
                f"and {self.reserved_tokens} reserved by {self.running} running requests, this one needs at least "
                f"{needed}.",
                "quota",
                RETRY_WHEN_ONE_ENDS_NS,
            )
        return None

    def take(self, key: ApiKey, wanted_tokens: int, now_ns: int) -> tuple[int, Reservation | None]:
        """Counts an admitted request; returns the tokens reserved of the quota, and of the tokens per minute."""
        reserved = wanted_tokens
        if key.quota is not None:
            reserved = min(reserved, key.quota - self.balance.charged_tokens - self.reserved_tokens)
        self.running += 1
        self.reserved_tokens += reserved
        if self.requests is not None:
            self.requests.add(1, now_ns)
        if self.tokens is None:
            return reserved, None
        return reserved, self.tokens.reserve(min(wanted_tokens, self.tokens.rate.burst), now_ns)

    def release(self, reserved_tokens: int, reservation: Reservation | None, used_tokens: int, now_ns: int) -> None:
        """Ends an open lease: its slot is free, its tokens per minute are put right."""
        self.running -= 1
        self.reserved_tokens -= reserved_tokens
        if reservation is not None:
            reservation.settle(used_tokens, now_ns)

    def spend_again(self, tokens: int, at_ns: int, *, still_open: bool) -> Reservation | None:
        """Counts tokens per minute of before a restart; call in the order of time. What a request holds that is still
        open can be put right later."""
        bucket = self.tokens
        if bucket is None:
            return None
        # A meter that was made just now had nothing to leak: it begins where its first event lies.
        if not bucket.level:
            bucket.stamp_ns = at_ns
        if still_open:
            return bucket.reserve(min(tokens, bucket.rate.burst), at_ns)
        bucket.add(tokens, at_ns)
        return None

    def charge(self, used: Usage, charged: int, requests: int, at_ms: int) -> None:
        """Adds to what the key has used. Differences may be negative."""
        balance = self.balance
        balance.prompt_tokens += used.prompt
        balance.cached_tokens += used.cached
        balance.completion_tokens += used.completion
        balance.requests += requests
        balance.charged_tokens += charged
        balance.last_used_ms = at_ms

    def quota_remaining(self, key: ApiKey) -> int | None:
        return None if key.quota is None else key.quota - self.balance.charged_tokens - self.reserved_tokens


def _limited(limit_name: str, message: str, wait_ns: int) -> Refusal:
    # Rounded up: whoever waits for as long as the sentence says, passes.
    hundredths = -(-wait_ns * 100 // NS_PER_SECOND)
    return Refusal(RateLimited.reason, f"{message} Try again in {hundredths / 100:g} s.", limit_name, wait_ns)
