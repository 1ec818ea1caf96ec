"""One set of limits that requests share, and what they hold of it: a key's, a user's, a key's for some models,
everybody's. Checking consumes nothing; taking is a step of its own."""

from __future__ import annotations

from vllm_proxy.auth.limiter import Bucket, Reservation, ReservingBucket, per_minute, per_second
from vllm_proxy.auth.limits import Limits, QuotaPeriod
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.refusal import RETRY_WHEN_ONE_ENDS_NS, Refusal, limited
from vllm_proxy.common.errors import QuotaExceeded

UNLIMITED = Limits()


class Scope:
    __slots__ = (
        "day_start_ms",
        "day_start_tokens",
        "limits",
        "month_start_ms",
        "month_start_tokens",
        "name",
        "quota",
        "quota_period",
        "requests",
        "reserved_tokens",
        "running",
        "tokens",
        "total_tokens",
        "words",
    )

    def __init__(self, name: str, words: str) -> None:
        """`name` is for programs (key, user, model:PATTERN, global), `words` end a sentence about a limit."""
        self.name = name
        self.words = words
        self.limits = UNLIMITED
        self.quota: int | None = None
        self.quota_period: QuotaPeriod = None
        self.requests: Bucket | None = None
        self.tokens: ReservingBucket | None = None
        #: Open leases, and the tokens that they hold of the quota.
        self.running = 0
        self.reserved_tokens = 0
        #: Tokens that were charged ever, and how many that were when the last day and month with charges began.
        self.total_tokens = 0
        self.day_start_ms = self.day_start_tokens = 0
        self.month_start_ms = self.month_start_tokens = 0

    @property
    def is_limited(self) -> bool:
        return self.quota is not None or self.limits != UNLIMITED

    def apply(self, limits: Limits, quota: int | None, quota_period: QuotaPeriod, now_ns: int) -> None:
        """Takes new limits; what was used of the old ones stays used."""
        self.quota, self.quota_period = quota, quota_period
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

    # One decision

    def refusal(self, least_tokens: int, wanted_tokens: int, now_ns: int, calendar: Calendar) -> Refusal | None:
        """The limit that stands in the way longest; first of all one that waiting does not help against. Less than
        `least_tokens` of a quota are of no use to the request."""
        longest = None
        if self.quota is not None:
            longest = self._over_quota(self.quota, max(1, least_tokens), calendar)
            if longest is not None and longest.retry_after_ns is None:
                return longest
        if self.requests is not None and (wait_ns := self.requests.wait_ns(1, now_ns)):
            message = f"The limit of {self.limits.qps:g} requests per second {self.words} is reached."
            longest = longer(longest, limited(self, "requests_per_second", message, wait_ns))
        if self.limits.concurrent is not None and self.running >= self.limits.concurrent:
            message = (
                f"The limit of {self.limits.concurrent} concurrent requests {self.words} is reached: "
                f"{self.running} are running."
            )
            longest = longer(longest, limited(self, "concurrency", message, RETRY_WHEN_ONE_ENDS_NS))
        if self.tokens is not None:
            needed = min(wanted_tokens, self.tokens.rate.burst)
            if wait_ns := self.tokens.wait_ns(needed, now_ns):
                message = (
                    f"The limit of {self.limits.tokens_per_minute} tokens per minute {self.words} is reached: "
                    f"this request reserves {needed}, {self.tokens.state(now_ns).remaining} are left now."
                )
                longest = longer(longest, limited(self, "tokens_per_minute", message, wait_ns))
        return longest

    def _over_quota(self, quota: int, needed: int, calendar: Calendar) -> Refusal | None:
        """A small rest may still be used: a request needs room for its prompt and a token of each answer, and reserves
        at most what is left. Reservations together never exceed the quota."""
        used = self.used_tokens(calendar)
        left = quota - used
        if left - self.reserved_tokens >= needed:
            return None
        of_period = f" a {self.quota_period}" if self.quota_period else ""
        if left < needed:
            left_ms = calendar.left_ms(self.quota_period) if needed <= quota else None
            again = f" It is whole again at the next {self.quota_period} (UTC)." if left_ms is not None else ""
            return Refusal(
                QuotaExceeded.reason,
                f"The quota of {quota} tokens{of_period} {self.words} is used up: {used} are used, this request needs "
                f"at least {needed}.{again}",
                "quota",
                None if left_ms is None else left_ms * 1_000_000,
                self,
            )
        return Refusal(
            QuotaExceeded.reason,
            f"The quota of {quota} tokens{of_period} {self.words} has no room now: {used} are used and "
            f"{self.reserved_tokens} reserved by {self.running} running requests, this one needs at least {needed}.",
            "quota",
            RETRY_WHEN_ONE_ENDS_NS,
            self,
        )

    def used_tokens(self, calendar: Calendar) -> int:
        """What counts against the quota."""
        if self.quota_period is None:
            return self.total_tokens
        if self.quota_period == "day":
            return self.total_tokens - self.day_start_tokens if self.day_start_ms == calendar.day_start_ms else 0
        return self.total_tokens - self.month_start_tokens if self.month_start_ms == calendar.month_start_ms else 0

    def quota_left(self, calendar: Calendar) -> int | None:
        if self.quota is None:
            return None
        return self.quota - self.used_tokens(calendar) - self.reserved_tokens

    # What is held

    # `running` and `reserved_tokens` are counted by whoever opens and closes leases: a call for each scope of each
    # request would cost more than the rest.

    def spend(self, wanted_tokens: int, now_ns: int) -> Reservation | None:
        """Counts an admitted request in the limits per time. Returns what it holds of the tokens per minute."""
        if self.requests is not None:
            self.requests.add(1, now_ns)
        if self.tokens is None:
            return None
        return self.tokens.reserve(min(wanted_tokens, self.tokens.rate.burst), now_ns)

    def hold(self, reserved_tokens: int) -> None:
        """Counts a request of before a restart, or of before this scope was there."""
        self.running += 1
        self.reserved_tokens += reserved_tokens

    def charge(self, tokens: int, calendar: Calendar) -> None:
        """Counts settled tokens; differences may be negative."""
        if self.day_start_ms != calendar.day_start_ms:
            self.day_start_ms, self.day_start_tokens = calendar.day_start_ms, self.total_tokens
            if self.month_start_ms != calendar.month_start_ms:
                self.month_start_ms, self.month_start_tokens = calendar.month_start_ms, self.total_tokens
        self.total_tokens += tokens

    def start_again(self, at_ns: int) -> None:
        """Counts a request of before a restart; call in the order of time, like `spend_again`."""
        if self.requests is not None:
            _begin(self.requests, at_ns)
            self.requests.add(1, at_ns)

    def spend_again(self, tokens: int, at_ns: int, *, still_open: bool) -> Reservation | None:
        """Counts tokens per minute of before a restart. What a request holds that is still open can be put right
        later."""
        bucket = self.tokens
        if bucket is None:
            return None
        _begin(bucket, at_ns)
        if still_open:
            return bucket.reserve(min(tokens, bucket.rate.burst), at_ns)
        bucket.add(tokens, at_ns)
        return None


def _begin(bucket: Bucket, at_ns: int) -> None:
    # A meter that was made just now had nothing to leak: it begins where its first event lies.
    if not bucket.level:
        bucket.stamp_ns = at_ns


def longer(one: Refusal | None, other: Refusal | None) -> Refusal | None:
    """Of two refusals the one to tell: of no use to wait for, or else the longer wait."""
    if one is None or other is None:
        return one or other
    if one.retry_after_ns is None:
        return one
    return other if other.retry_after_ns is None or other.retry_after_ns > one.retry_after_ns else one
