"""Why a request is not admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.common.errors import RateLimited

if TYPE_CHECKING:
    from vllm_proxy.auth.scope import Scope

#: When a running request may end is not known; a second is what a client is told to wait for one.
RETRY_WHEN_ONE_ENDS_NS = NS_PER_SECOND


class Refusal(NamedTuple):
    """`retry_after_ns` None: waiting does not help."""

    reason: str
    message: str
    limit_name: str = ""
    retry_after_ns: int | None = None
    #: Whose limit it is. None: not a matter of limits.
    scope: Scope | None = None

    @property
    def may_wait(self) -> bool:
        """Whether it is worth the while to wait for it here, for so long as an admission may."""
        return self.reason == RateLimited.reason


def limited(scope: Scope, limit_name: str, message: str, wait_ns: int) -> Refusal:
    # Rounded up: whoever waits for as long as the sentence says, passes.
    hundredths = -(-wait_ns * 100 // NS_PER_SECOND)
    return Refusal(RateLimited.reason, f"{message} Try again in {hundredths / 100:g} s.", limit_name, wait_ns, scope)
