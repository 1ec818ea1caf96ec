"""AuthService's methods about usage: protocol to domain and back."""

from __future__ import annotations

from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.decision import Ask
from vllm_proxy.auth.key_administration import KeyAdministration
from vllm_proxy.auth.key_methods import page_size
from vllm_proxy.auth.key_wire import bad_token, from_token, key_message, token_of
from vllm_proxy.auth.keys import KEY_ID_BYTES, key_id_of
from vllm_proxy.auth.lease import Operation
from vllm_proxy.auth.store import Store, UsageColumn, UsageQuery, UsageRow
from vllm_proxy.auth.usage_sums import MS_PER_HOUR, Group, group_of
from vllm_proxy.auth.wire import fill_state
from vllm_proxy.common.errors import InvalidRequest, from_reason

DEFAULT_PAGE = 1000
MAX_PAGE = 10_000
_MS_PER_DAY = 24 * MS_PER_HOUR
_OWN_DAYS = 30

_COLUMNS: dict[int, UsageColumn] = {
    pb.USAGE_GROUP_KEY: "key",
    pb.USAGE_GROUP_USER: "user",
    pb.USAGE_GROUP_MODEL: "model",
    pb.USAGE_GROUP_BASE_MODEL: "base_model",
    pb.USAGE_GROUP_HOUR: "hour",
    pb.USAGE_GROUP_DAY: "day",
    pb.USAGE_GROUP_ADAPTER: "adapter",
}


class UsageMethods:
    """Mixed into the servicer."""

    _admission: Admission
    _store: Store
    _clock: Clock
    _keys: KeyAdministration

    async def QueryUsage(self, request: pb.QueryUsageRequest, context: Any) -> pb.QueryUsageResponse:
        columns = _columns(request)
        size = page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
        from_ms, until_ms = self._bounds(request.from_ms, request.to_ms)
        query = UsageQuery(
            from_ms,
            until_ms,
            columns,
            _account_prefix(request.key_id) if request.key_id else None,
            request.user or None,
            request.model or None,
            _after(columns, request.page_token) if request.page_token else None,
            size + 1,
        )
        found = await self._store.usage(query)
        page = found[:size]
        more = len(found) > size
        return pb.QueryUsageResponse(
            rows=[row_message(columns, row) for row in page],
            next_page_token=_token(columns, page[-1]) if more else "",
            from_ms=from_ms,
            to_ms=until_ms,
        )

    async def GetOwnUsage(self, request: pb.GetOwnUsageRequest, context: Any) -> pb.GetOwnUsageResponse:
        admission = self._admission
        asked = Ask(request.api_key_sha256, Operation.READ, client_is_local=request.client_is_local)
        refusal = admission.admit(asked).refusal
        key = admission.keys.find(request.api_key_sha256)
        if refusal is not None or key is None:
            assert refusal is not None
            raise from_reason(refusal.reason, refusal.message)
        now_ms = self._clock.unix_ms()
        from_ms = (request.from_ms or now_ms - (_OWN_DAYS - 1) * _MS_PER_DAY) // _MS_PER_DAY * _MS_PER_DAY
        from_ms, until_ms = self._bounds(from_ms, request.to_ms)
        columns: tuple[UsageColumn, ...] = ("day", "model")
        rows = await self._store.usage(UsageQuery(from_ms, until_ms, columns, account_prefix=key.digest))
        standing = admission.standing_of(key)
        response = pb.GetOwnUsageResponse(
            key=key_message(await self._keys.get(key.key_id), admission.holding_of(key), now_ms),
            quota_remaining=standing.quota_remaining,
            rows=[row_message(columns, row) for row in rows],
            from_ms=from_ms,
            to_ms=until_ms,
        )
        for name, limit in (*standing.limits._asdict().items(), ("max_response_tokens", standing.max_response_tokens)):
            if limit is not None:
                setattr(response.limits, name, limit)
        if standing.requests is not None:
            fill_state(response.requests, standing.requests)
        if standing.tokens is not None:
            fill_state(response.tokens, standing.tokens)
        return response

    def _bounds(self, from_ms: int, to_ms: int) -> tuple[int, int]:
        """Rounded outwards to whole hours. Raises InvalidRequest."""
        until_ms = -(-(to_ms or self._clock.unix_ms() + 1) // MS_PER_HOUR) * MS_PER_HOUR
        from_ms = max(0, from_ms) // MS_PER_HOUR * MS_PER_HOUR
        if from_ms >= until_ms:
            raise InvalidRequest("'from' must be before 'to'.", metadata={"param": "from"})
        return from_ms, until_ms


def _columns(request: pb.QueryUsageRequest) -> tuple[UsageColumn, ...]:
    numbers = list(request.group_by)
    if any(number not in _COLUMNS for number in numbers) or len(set(numbers)) < len(numbers):
        raise InvalidRequest("group_by: an unknown group, or one that stands twice.", metadata={"param": "group_by"})
    if pb.USAGE_GROUP_HOUR in numbers and pb.USAGE_GROUP_DAY in numbers:
        raise InvalidRequest("group_by: take either the day or the hour.", metadata={"param": "group_by"})
    return tuple(_COLUMNS[number] for number in numbers)


def _account_prefix(key_id: str) -> bytes:
    try:
        prefix = bytes.fromhex(key_id)
    except ValueError:
        prefix = b""
    if len(prefix) != KEY_ID_BYTES:
        raise InvalidRequest(f"{key_id[:64]!r} is no id of a key.", metadata={"param": "key"})
    return prefix


def _token(columns: tuple[UsageColumn, ...], row: UsageRow) -> str:
    return token_of([value.hex() if isinstance(value, bytes) else value for value in group_of(columns, row)])


def _after(columns: tuple[UsageColumn, ...], token: str) -> Group:
    values = from_token(token)
    if not isinstance(values, list) or len(values) != len(columns):
        raise bad_token()
    return tuple(_value(column, value) for column, value in zip(columns, values, strict=True))


def _value(column: UsageColumn, value: Any) -> int | str | bytes:
    match column, value:
        case (("hour" | "day"), int()):
            return value
        case "key", str():
            return _account_prefix(value)
        case (("user" | "model" | "base_model" | "adapter"), str()):
            return value
    raise bad_token()


def row_message(columns: tuple[UsageColumn, ...], row: UsageRow) -> pb.UsageRow:
    message = pb.UsageRow(
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        charged_tokens=row.charged_tokens,
    )
    for column in columns:
        match column:
            case "hour" | "day":
                message.start_ms = row.start_ms
            case "key":
                message.key_id = key_id_of(row.account)
            case _:
                setattr(message, column, getattr(row, column))
    return message
