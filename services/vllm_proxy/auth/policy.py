"""The limits that the configuration sets: of each key, of users, of everybody. They change while requests run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_proxy.auth.limits import DEFAULT, LimitOverrides, Limits, QuotaPeriod
from vllm_proxy.common.settings import Settings


@dataclass(frozen=True, slots=True)
class UserRules:
    limits: LimitOverrides = LimitOverrides()  # noqa: RUF009 - an immutable value
    quota: int | None = None
    quota_period: QuotaPeriod = None


_NO_RULES = UserRules()


@dataclass(frozen=True, slots=True)
class Policy:
    key_limits: Limits = Limits()  # noqa: RUF009 - an immutable value
    user_limits: Limits = Limits()  # noqa: RUF009 - an immutable value
    global_limits: Limits = Limits()  # noqa: RUF009 - an immutable value
    users: Mapping[str, UserRules] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        users = {}
        for name, given in settings.users.items():
            limits = {
                limit: getattr(given, limit) if limit in given.model_fields_set else DEFAULT for limit in Limits._fields
            }
            users[name] = UserRules(LimitOverrides(**limits), given.quota, given.quota_period)
        return cls(
            Limits.from_settings(settings.rate_limit),
            Limits.from_settings(settings.user_rate_limit),
            Limits.from_settings(settings.global_rate_limit),
            users,
        )

    def user_rules(self, user: str) -> UserRules:
        return self.users.get(user, _NO_RULES)
