"""Keys between the protocol's messages and the entries of `key_entry`, and page tokens."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.accounts import Holding
from vllm_proxy.auth.audit_log import Actor
from vllm_proxy.auth.key_administration import DeclaredAfter, KeyRow, MadeAfter, Position
from vllm_proxy.auth.key_entry import CLEARED, rfc3339
from vllm_proxy.auth.keys import KeySource
from vllm_proxy.auth.limits import DEFAULT, LimitOverrides
from vllm_proxy.common.errors import InvalidRequest

_PERIODS = {pb.QUOTA_PERIOD_DAY: "day", pb.QUOTA_PERIOD_MONTH: "month"}
_PERIOD_NUMBERS = {name: number for number, name in _PERIODS.items()}
_MAX_TEXT = 128


def actor_of(actor: pb.Actor, context: Any) -> Actor:
    """Who asks; a caller that does not say is known by its connection."""
    return Actor(
        actor.key_id[:_MAX_TEXT],
        actor.user[:_MAX_TEXT] or "internal",
        actor.client_address[:_MAX_TEXT] or str(context.peer())[:_MAX_TEXT],
        actor.request_id[:_MAX_TEXT],
    )


def changes_of(spec: pb.KeySpec, paths: Iterable[str]) -> dict[str, Any]:
    """Entry fields for the message's fields that are named. Raises InvalidRequest for an unknown one.
    No paths: the fields that are set."""
    named = list(paths) or [field.name for field, _ in spec.ListFields()]
    changes: dict[str, Any] = {}
    for path in named:
        if path not in pb.KeySpec.DESCRIPTOR.fields_by_name:
            raise InvalidRequest(f"update_mask: {path[:64]!r} is no field of a key.", metadata={"param": path[:64]})
        changes.update([_change(spec, path)])
    return changes


def _change(spec: pb.KeySpec, path: str) -> tuple[str, Any]:
    match path:
        case "user" | "name":
            return path, getattr(spec, path) or CLEARED
        case "quota_period":
            return path, _PERIODS.get(spec.quota_period, CLEARED)
        case "rate_limit":
            limits = _limits_entry(spec.rate_limit)
            if "max_response_tokens" in limits:
                raise InvalidRequest('"max_response_tokens" is a field of its own.', metadata={"param": path})
            return path, limits or CLEARED
        case "models":
            return path, list(spec.models.patterns) if spec.HasField("models") else CLEARED
        case "model_limits":
            return path, {pattern: _limits_entry(limits) for pattern, limits in spec.model_limits.items()} or CLEARED
        case "expires_at_ms":
            return "expires_at", _time(spec.expires_at_ms) if spec.HasField("expires_at_ms") else CLEARED
        case "priority":
            text = spec.priority
            return path, int(text) if text.removeprefix("-").isdecimal() else text or CLEARED
        case "max_response_tokens":
            return path, (spec.max_response_tokens or None) if spec.HasField(path) else CLEARED
        case _:
            return path, getattr(spec, path) if spec.HasField(path) else CLEARED


def _time(unix_ms: int) -> str:
    try:
        return rfc3339(unix_ms)
    except (OverflowError, ValueError, OSError):
        raise InvalidRequest('"expires_at" is no time.', metadata={"param": "expires_at"}) from None


def _limits_entry(limits: pb.KeyLimits) -> dict[str, Any]:
    # 0 is unlimited in the message, null in an entry.
    return {field.name: value or None for field, value in limits.ListFields()}


def key_message(row: KeyRow, holding: Holding, now_ms: int) -> pb.Key:
    key, balance = row.key, holding.balance
    message = pb.Key(
        key_id=key.key_id,
        prefix=key.prefix,
        user=key.user,
        enabled=key.enabled,
        quota=key.quota,
        prompt_tokens=max(0, balance.prompt_tokens),
        completion_tokens=max(0, balance.completion_tokens),
        requests=balance.requests,
        running=holding.running,
        reserved_tokens=holding.reserved_tokens,
        source=pb.KEY_SOURCE_CREATED if key.source is KeySource.API else pb.KEY_SOURCE_DECLARED,
        state=_state(row, now_ms),
        created_at_ms=row.created_at_ms,
        created_by=row.created_by,
        last_used_at_ms=balance.last_used_ms or None,
        revoked_at_ms=row.revoked_at_ms,
    )
    if (rotation := key.rotation) is not None and rotation.old_expires_at_ms > now_ms and not row.revoked_at_ms:
        message.old_secret_expires_at_ms = rotation.old_expires_at_ms
    if key.quota is not None:
        message.quota_used = max(0, holding.quota_used)
        if holding.quota_resets_at_ms is not None:
            message.quota_resets_at_ms = holding.quota_resets_at_ms
    _fill_spec(message.spec, row)
    return message


def _state(row: KeyRow, now_ms: int) -> pb.KeyState:
    if row.revoked_at_ms is not None:
        return pb.KEY_STATE_REVOKED
    if row.key.expires_at_ms is not None and row.key.expires_at_ms <= now_ms:
        return pb.KEY_STATE_EXPIRED
    return pb.KEY_STATE_ACTIVE if row.key.enabled else pb.KEY_STATE_DISABLED


def _fill_spec(spec: pb.KeySpec, row: KeyRow) -> None:
    key, rules = row.key, row.key.rules
    spec.user, spec.name, spec.enabled = key.user, key.name, key.enabled
    if key.quota is not None:
        spec.quota = key.quota
    if key.quota_period is not None:
        spec.quota_period = _PERIOD_NUMBERS[key.quota_period]
    fill_limits(spec.rate_limit, rules.limits._replace(max_response_tokens=DEFAULT))
    if (own := rules.limits.max_response_tokens) is not DEFAULT:
        spec.max_response_tokens = own or 0
    if rules.models is not None:
        spec.models.SetInParent()
        spec.models.patterns.extend(rules.models)
    for pattern, limits in rules.model_limits:
        spec.model_limits[pattern].SetInParent()
        fill_limits(spec.model_limits[pattern], limits)
    if key.expires_at_ms is not None:
        spec.expires_at_ms = key.expires_at_ms
    if rules.priority is not None:
        spec.priority = str(rules.priority)
    if rules.admission_wait_ms is not None:
        spec.admission_wait_ms = rules.admission_wait_ms


def fill_limits(message: pb.KeyLimits, limits: LimitOverrides) -> None:
    for name, value in limits._asdict().items():
        if value is not DEFAULT:
            setattr(message, name, value or 0)


# Page tokens are opaque: JSON that says where the next page begins. They hold no hash.


def token_of(position: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode()


def from_token(token: str) -> Any:
    """Raises InvalidRequest."""
    try:
        return json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error, RecursionError):
        raise bad_token() from None


def bad_token() -> InvalidRequest:
    return InvalidRequest("This page_token is none of ours.", metadata={"param": "page_token"})


def position_token(position: Position | None) -> str:
    match position:
        case None:
            return ""
        case DeclaredAfter(keys):
            return token_of([keys])
        case MadeAfter(created_at_ms, digest_prefix):
            return token_of([created_at_ms, digest_prefix.hex()])


def position_from(token: str) -> Position:
    match from_token(token) if token else [0]:
        case [int(count)] if count >= 0:
            return DeclaredAfter(count)
        case [int(created_at_ms), str(digest_hex)]:
            try:
                return MadeAfter(created_at_ms, bytes.fromhex(digest_hex))
            except ValueError:
                pass
    raise bad_token()
