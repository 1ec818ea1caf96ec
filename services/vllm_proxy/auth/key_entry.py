"""One key as JSON, in the declared file and in the store: checked field by field, and written again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from vllm_proxy.auth.keys import ApiKey, KeySource, Rotation, digest_of
from vllm_proxy.auth.limits import DEFAULT, Default, KeyRules, LimitOverrides, QuotaPeriod, shared

_FIELDS = frozenset(
    (
        *("key", "key_sha256", "prefix", "user", "name", "enabled", "quota", "quota_period", "expires_at"),
        *("rate_limit", "max_response_tokens", "models", "model_limits", "priority", "admission_wait_ms"),
    )
)
#: Only of keys that the API made.
_ROTATION_FIELDS = ("secret_sha256", "old_secret_sha256", "old_secret_expires_at_ms")
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_HASH = re.compile(r"[0-9a-f]{64}")
#: Keys shorter than this show only a few characters of themselves.
_LONG_KEY = 20
_MAX_TOKENS = 2**63
_MAX_NAME = 128
_MAX_PATTERN = 256
_MAX_PATTERNS = 256
_MAX_PRIORITY = 1000
_MAX_WAIT_MS = 600_000
_RATE_LIMIT_FIELDS = ("qps", "concurrent", "tokens_per_minute")
_MODEL_LIMIT_FIELDS = (*_RATE_LIMIT_FIELDS, "max_response_tokens")


class Cleared(Enum):
    """A field that is no longer to be there. None is a value: null."""

    CLEARED = "cleared"


CLEARED: Final = Cleared.CLEARED


def parse_entry(entry: Any, source: KeySource = KeySource.FILE) -> ApiKey:
    """A key from its JSON object. Raises ValueError, which names the field and never the key."""
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    known = _FIELDS.union(_ROTATION_FIELDS) if source is KeySource.API else _FIELDS
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"unknown field {unknown[0][:40]!r}")
    digest, prefix = _identity(entry)
    quota = _whole_number(entry, "quota", least=0, what="a whole number of tokens, or null for unlimited")
    return ApiKey(
        digest=digest,
        prefix=prefix,
        user=_label(entry, "user", required=True),
        enabled=_flag(entry, "enabled"),
        quota=None if quota is DEFAULT else quota,
        quota_period=_quota_period(entry, quota),
        expires_at_ms=_expires_at_ms(entry),
        rules=shared(
            KeyRules(
                limits=_overrides(
                    {**_object(entry, "rate_limit", _RATE_LIMIT_FIELDS), **_picked(entry, "max_response_tokens")}
                ),
                models=_models(entry),
                model_limits=_model_limits(entry),
                priority=_priority(entry),
                admission_wait_ms=_wait_ms(entry),
            )
        ),
        name=_label(entry, "name", required=False),
        source=source,
        rotation=_rotation(entry),
    )


def entry_of(key: ApiKey) -> dict[str, Any]:
    """The JSON object that `parse_entry` makes this key of; it holds the hash, not the key."""
    rules = key.rules
    entry: dict[str, Any] = {"key_sha256": key.digest.hex(), "user": key.user, "enabled": key.enabled}
    entry["quota"] = key.quota
    optional = {
        "prefix": key.prefix or None,
        "name": key.name or None,
        "quota_period": key.quota_period,
        "expires_at": None if key.expires_at_ms is None else rfc3339(key.expires_at_ms),
        "models": None if rules.models is None else list(rules.models),
        "priority": rules.priority,
        "admission_wait_ms": rules.admission_wait_ms,
    }
    entry |= {name: value for name, value in optional.items() if value is not None}
    limits = _given(rules.limits)
    entry |= _picked(limits, "max_response_tokens")
    limits.pop("max_response_tokens", None)
    if limits:
        entry["rate_limit"] = limits
    if (rotation := key.rotation) is not None:
        entry["secret_sha256"], entry["old_secret_sha256"] = rotation.secret.hex(), rotation.old.hex()
        entry["old_secret_expires_at_ms"] = rotation.old_expires_at_ms
    if rules.model_limits:
        entry["model_limits"] = {pattern: _given(limits) for pattern, limits in rules.model_limits}
    return entry


def changed(entry: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with each changed field in the place of its own; one that is CLEARED is left out."""
    after = {**entry, **changes}
    if after.get("quota") is None or after["quota"] is CLEARED:
        # It goes with the quota, unless it was asked for.
        after = {name: value for name, value in after.items() if name != "quota_period" or name in changes}
    return {name: value for name, value in after.items() if value is not CLEARED}


def _identity(entry: Mapping[str, Any]) -> tuple[bytes, str]:
    text, digest_hex, prefix = entry.get("key"), entry.get("key_sha256"), entry.get("prefix")
    if (text is None) == (digest_hex is None):
        raise ValueError('must have either "key" or "key_sha256"')
    if text is not None:
        if not isinstance(text, str) or not _KEY.fullmatch(text):
            raise ValueError('"key" must be 1 to 512 printable ASCII characters without spaces')
        if prefix is not None:
            raise ValueError('"prefix" goes with "key_sha256"; of a "key" it is known')
        return digest_of(text), prefix_of(text)
    if not isinstance(digest_hex, str) or not _HASH.fullmatch(digest_hex.lower()):
        raise ValueError('"key_sha256" must be 64 hexadecimal digits')
    if prefix is not None and (not isinstance(prefix, str) or len(prefix) > _LONG_KEY or not prefix.isprintable()):
        raise ValueError(f'"prefix" must be at most {_LONG_KEY} printable characters')
    return bytes.fromhex(digest_hex), prefix or ""


def _rotation(entry: Mapping[str, Any]) -> Rotation | None:
    if "secret_sha256" not in entry:
        return None
    secret, old, expires_at_ms = (entry.get(field) for field in _ROTATION_FIELDS)
    for digest_hex in (secret, old):
        if not isinstance(digest_hex, str) or not _HASH.fullmatch(digest_hex):
            raise ValueError('"secret_sha256" and "old_secret_sha256" must be 64 hexadecimal digits')
    if type(expires_at_ms) is not int:
        raise ValueError('"old_secret_expires_at_ms" must be a whole number')
    return Rotation(bytes.fromhex(str(secret)), bytes.fromhex(str(old)), expires_at_ms)


def prefix_of(key: str) -> str:
    """What may be shown of a key."""
    return f"{key[: 7 if len(key) >= _LONG_KEY else 3]}…"


def _label(entry: Mapping[str, Any], field: str, *, required: bool) -> str:
    value = entry.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or not value.isprintable():
        raise ValueError(f'"{field}" must be 1 to {_MAX_NAME} printable characters without spaces around them')
    if value != value.strip():
        raise ValueError(f'"{field}" must be 1 to {_MAX_NAME} printable characters without spaces around them')
    return value


def _flag(entry: Mapping[str, Any], field: str) -> bool:
    value = entry.get(field, True)
    if not isinstance(value, bool):
        raise ValueError(f'"{field}" must be true or false')
    return value


def _whole_number(entry: Mapping[str, Any], field: str, *, least: int, what: str) -> int | Default | None:
    value = entry.get(field, DEFAULT)
    if value is None or value is DEFAULT:
        return value
    if type(value) is not int or not least <= value < _MAX_TOKENS:
        raise ValueError(f'"{field}" must be {what}')
    return value


def _quota_period(entry: Mapping[str, Any], quota: object) -> QuotaPeriod:
    period = entry.get("quota_period")
    if period is None:
        return None
    if period not in ("day", "month"):
        raise ValueError('"quota_period" must be "day", "month" or null for a total')
    if type(quota) is not int:
        raise ValueError('"quota_period" needs a "quota"')
    return "day" if period == "day" else "month"


def _expires_at_ms(entry: Mapping[str, Any]) -> int | None:
    text = entry.get("expires_at")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return round(moment.timestamp() * 1000)
    except (TypeError, ValueError, OverflowError):
        raise ValueError('"expires_at" must be a time with its zone, like "2027-01-31T12:00:00Z"') from None


def rfc3339(unix_ms: int) -> str:
    timespec = "milliseconds" if unix_ms % 1000 else "seconds"
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _object(entry: Mapping[str, Any], field: str, known: tuple[str, ...]) -> dict[str, Any]:
    value = entry.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f'"{field}" must be an object')
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f'"{field}" has the unknown field {unknown[0][:40]!r}')
    return value


def _picked(entry: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {field: entry[field]} if field in entry else {}


def _overrides(values: Mapping[str, Any]) -> LimitOverrides:
    what = "a whole number above 0, or null for unlimited"
    return LimitOverrides(
        qps=_rate(values, "qps"),
        concurrent=_whole_number(values, "concurrent", least=1, what=what),
        tokens_per_minute=_whole_number(values, "tokens_per_minute", least=1, what=what),
        max_response_tokens=_whole_number(values, "max_response_tokens", least=1, what=what),
    )


def _given(limits: LimitOverrides) -> dict[str, Any]:
    return {name: value for name, value in limits._asdict().items() if value is not DEFAULT}


def _rate(values: Mapping[str, Any], field: str) -> float | Default | None:
    value = values.get(field, DEFAULT)
    if value is None or value is DEFAULT:
        return value
    if type(value) not in (int, float) or not 0 < value < _MAX_TOKENS or not math.isfinite(value):
        raise ValueError(f'"{field}" must be a number above 0, or null for unlimited')
    return float(value)


def _models(entry: Mapping[str, Any]) -> tuple[str, ...] | None:
    patterns = entry.get("models")
    if patterns is None:
        return None
    if not isinstance(patterns, list) or len(patterns) > _MAX_PATTERNS or not all(map(_is_pattern, patterns)):
        raise ValueError(
            f'"models" must be a list of at most {_MAX_PATTERNS} names or patterns like "qwen-*", or null for all'
        )
    return tuple(patterns)


def _model_limits(entry: Mapping[str, Any]) -> tuple[tuple[str, LimitOverrides], ...]:
    rows = entry.get("model_limits")
    if rows is None:
        return ()
    if not isinstance(rows, dict) or len(rows) > _MAX_PATTERNS or not all(map(_is_pattern, rows)):
        raise ValueError(
            f'"model_limits" must be an object with at most {_MAX_PATTERNS} names or patterns like "qwen-*"'
        )
    try:
        return tuple((pattern, _overrides(_object(rows, pattern, _MODEL_LIMIT_FIELDS))) for pattern in rows)
    except ValueError as e:
        raise ValueError(f'"model_limits": {e}') from None


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_PATTERN and value.isprintable()


def _priority(entry: Mapping[str, Any]) -> str | int | None:
    value = entry.get("priority")
    if value is None:
        return None
    if type(value) is int and abs(value) <= _MAX_PRIORITY:
        return value
    if isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable():
        return value
    raise ValueError(f'"priority" must be the name of a class, or a whole number up to {_MAX_PRIORITY}')


def _wait_ms(entry: Mapping[str, Any]) -> int | None:
    value = entry.get("admission_wait_ms")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= _MAX_WAIT_MS:
        raise ValueError(f'"admission_wait_ms" must be a whole number of milliseconds, at most {_MAX_WAIT_MS}')
    return value
