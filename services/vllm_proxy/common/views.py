"""Keys, usage and the audit log as JSON: the same over HTTP and on the command line. Times are RFC 3339, UTC."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2 as pb

_SOURCES = {pb.KEY_SOURCE_DECLARED: "declared", pb.KEY_SOURCE_CREATED: "created"}
PERIODS = {"total": pb.QUOTA_PERIOD_TOTAL, "day": pb.QUOTA_PERIOD_DAY, "month": pb.QUOTA_PERIOD_MONTH}
_PERIOD_NAMES = {number: name for name, number in PERIODS.items()} | {pb.QUOTA_PERIOD_UNSPECIFIED: "total"}


def moment(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def rfc3339(unix_ms: int) -> str:
    return moment(unix_ms).isoformat(timespec="milliseconds" if unix_ms % 1000 else "seconds").replace("+00:00", "Z")


def _time(message: pb.Key | pb.KeySpec, field: str) -> str | None:
    """None for 0 and for what is not set."""
    unix_ms = getattr(message, field)
    return rfc3339(unix_ms) if unix_ms else None


def _given(message: pb.Key | pb.KeySpec, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def key_view(key: pb.Key) -> dict[str, Any]:
    spec = key.spec
    return {
        "id": key.key_id,
        "prefix": key.prefix,
        "user": key.user,
        "name": spec.name,
        "state": pb.KeyState.Name(key.state).removeprefix("KEY_STATE_").lower(),
        "source": _SOURCES[key.source],
        "enabled": key.enabled,
        "quota": _given(key, "quota"),
        "quota_period": _PERIOD_NAMES[spec.quota_period] if key.HasField("quota") else None,
        "quota_used": _given(key, "quota_used"),
        "quota_resets_at": _time(key, "quota_resets_at_ms"),
        "rate_limit": limits_view(spec.rate_limit),
        "max_response_tokens": spec.max_response_tokens or None,
        "models": list(spec.models.patterns) if spec.HasField("models") else None,
        "model_limits": {pattern: limits_view(limits) for pattern, limits in sorted(spec.model_limits.items())},
        "expires_at": _time(spec, "expires_at_ms"),
        "priority": spec.priority or None,
        "admission_wait_ms": _given(spec, "admission_wait_ms"),
        "created_at": _time(key, "created_at_ms"),
        "created_by": key.created_by or None,
        "last_used_at": _time(key, "last_used_at_ms"),
        "old_secret_expires_at": _time(key, "old_secret_expires_at_ms"),
        "revoked_at": _time(key, "revoked_at_ms"),
        "running": key.running,
        "reserved_tokens": key.reserved_tokens,
        "usage": {
            "requests": key.requests,
            "prompt_tokens": key.prompt_tokens,
            "completion_tokens": key.completion_tokens,
            "total_tokens": key.prompt_tokens + key.completion_tokens,
        },
    }


def limits_view(limits: pb.KeyLimits) -> dict[str, float | None]:
    """Those that are set; None: unlimited."""
    return {field.name: value or None for field, value in limits.ListFields()}


#: What usage is grouped by: its number in the protocol, and its value in a row.
USAGE_GROUPS: dict[str, tuple[pb.UsageGroup, Callable[[pb.UsageRow], str]]] = {
    "day": (pb.USAGE_GROUP_DAY, lambda row: rfc3339(row.start_ms)[:10]),
    "hour": (pb.USAGE_GROUP_HOUR, lambda row: rfc3339(row.start_ms)),
    "key": (pb.USAGE_GROUP_KEY, lambda row: row.key_id),
    "user": (pb.USAGE_GROUP_USER, lambda row: row.user),
    "model": (pb.USAGE_GROUP_MODEL, lambda row: row.model),
    "base_model": (pb.USAGE_GROUP_BASE_MODEL, lambda row: row.base_model),
    "adapter": (pb.USAGE_GROUP_ADAPTER, lambda row: row.adapter),
}
USAGE_COUNTS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "total_tokens",
    "charged_tokens",
)


def usage_row(row: pb.UsageRow, groups: Iterable[str]) -> dict[str, Any]:
    """The groups, then the counts."""
    counts = (
        row.requests,
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        row.prompt_tokens + row.completion_tokens,
        row.charged_tokens,
    )
    return {group: USAGE_GROUPS[group][1](row) for group in groups} | dict(zip(USAGE_COUNTS, counts, strict=True))


def audit_line(entry: pb.AuditEntry) -> dict[str, str]:
    actor = entry.actor
    return {
        "at": rfc3339(entry.at_ms),
        "user": actor.user,
        "key_id": actor.key_id,
        "client_address": actor.client_address,
        "action": entry.action,
        "target": entry.target,
        "outcome": entry.outcome,
        "detail": entry.detail,
        "request_id": actor.request_id,
    }
