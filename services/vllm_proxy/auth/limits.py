"""What may be limited, the defaults of the configuration, and what a key says otherwise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, NamedTuple

from vllm_proxy.common.settings import RateLimit

#: How long a quota lasts; None: it is a total.
QuotaPeriod = Literal["day", "month"] | None


class Default(Enum):
    """A value that was left out: the configuration's default is meant. None means unlimited."""

    DEFAULT = "default"


DEFAULT: Final = Default.DEFAULT


class Limits(NamedTuple):
    """None: unlimited."""

    qps: float | None = None
    concurrent: int | None = None
    tokens_per_minute: int | None = None

    @classmethod
    def from_settings(cls, section: RateLimit) -> Limits:
        return cls(section.qps, section.concurrent, section.tokens_per_minute)


class LimitOverrides(NamedTuple):
    """What stands in the place of defaults."""

    qps: float | Default | None = DEFAULT
    concurrent: int | Default | None = DEFAULT
    tokens_per_minute: int | Default | None = DEFAULT
    #: Tokens of one answer.
    max_response_tokens: int | Default | None = DEFAULT

    def over(self, defaults: Limits) -> Limits:
        return Limits(
            defaults.qps if self.qps is DEFAULT else self.qps,
            defaults.concurrent if self.concurrent is DEFAULT else self.concurrent,
            defaults.tokens_per_minute if self.tokens_per_minute is DEFAULT else self.tokens_per_minute,
        )


NO_OVERRIDES: Final = LimitOverrides()


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What few keys say and many say alike; make them with `shared`, so that a million keys share a handful."""

    limits: LimitOverrides = NO_OVERRIDES
    #: Patterns over the names of models and adapters; None: all.
    models: tuple[str, ...] | None = None
    #: Pattern -> limits of this key for what it matches, all together.
    model_limits: tuple[tuple[str, LimitOverrides], ...] = ()
    #: A class of the configuration, or its number; None: the default class.
    priority: str | int | None = None
    #: How long an admission may wait instead of being refused; None: the configuration's.
    admission_wait_ms: int | None = None


@functools.lru_cache(maxsize=4096)
def shared(rules: KeyRules) -> KeyRules:
    """The first of all equal ones."""
    return rules


NO_RULES: Final = shared(KeyRules())
