"""Proto messages <-> the admission's own."""

from __future__ import annotations

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.decision import Ask, Decision
from vllm_proxy.auth.lease import Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.limiter import LimitState
from vllm_proxy.auth.prompt_estimate import Script
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.common.errors import AuthUnavailable, InvalidRequest

#: Text that comes from clients is cut to so many characters before it is kept or logged.
_MAX_REQUEST_ID = 128
_MAX_NAME = 256
_NS_PER_MS = 1_000_000
_MAX_UINT32 = 2**32 - 1

#: What is answered while the store does not accept.
STORE_AWAY = "The auth service cannot reach its store; nothing new is admitted until it can."
_RETRY_AFTER_NS = 1_000_000_000

_OPERATIONS = {int(operation): operation for operation in Operation}
_SOURCES = {int(source): source for source in Source} | {0: Source.EDGE}
_SCRIPTS = {int(script): script for script in Script}
_OUTCOMES = {int(outcome): outcome for outcome in Outcome}


def ask_of(request: pb.AdmitRequest, owner_id: str) -> Ask:
    return Ask(
        request.api_key_sha256,
        # A newer peer's operation is as good as none: refused.
        _OPERATIONS.get(request.operation, Operation.UNSPECIFIED),
        owner_id,
        request.request_id[:_MAX_REQUEST_ID],
        request.model[:_MAX_NAME],
        request.prompt_tokens_estimate,
        request.response_tokens if request.HasField("response_tokens") else None,
        request.choices,
        request.client_is_local,
        request.prompt_bytes,
        _SCRIPTS.get(request.prompt_script, Script.UNSPECIFIED),
        request.names_no_model,
    )


def unavailable() -> Decision:
    return Decision(Refusal(AuthUnavailable.reason, STORE_AWAY, retry_after_ns=_RETRY_AFTER_NS))


def admit_response(seq: int, decision: Decision) -> pb.AdmitResponse:
    # Field by field: a third of what the constructor costs.
    response = pb.AdmitResponse()
    response.seq = seq
    response.key_id = decision.key_id
    response.user = decision.user
    if decision.lease_id:
        response.lease_id = decision.lease_id
        response.reserved_tokens = decision.reserved_tokens
    if (refusal := decision.refusal) is not None:
        response.reason = refusal.reason
        response.limit_name = refusal.limit_name
        response.message = refusal.message
        if refusal.scope is not None:
            response.limit_scope = refusal.scope.name
        if refusal.retry_after_ns is not None:
            response.retry_after_ms = _milliseconds(refusal.retry_after_ns)
    else:
        response.admitted = True
    if decision.requests is not None:
        fill_state(response.requests, decision.requests)
    if decision.tokens is not None:
        fill_state(response.tokens, decision.tokens)
    if decision.quota_remaining is not None:
        response.quota_remaining = decision.quota_remaining
    if decision.max_response_tokens is not None:
        response.max_response_tokens = min(_MAX_UINT32, decision.max_response_tokens)
    if decision.priority:
        response.priority = decision.priority
    if decision.models is not None:
        response.models.SetInParent()
        response.models.patterns.extend(decision.models)
    return response


def settlement_of(request: pb.SettleRequest) -> Settlement:
    """Raises InvalidRequest if it names no lease."""
    if not request.lease_id:
        raise InvalidRequest("A settlement must name its lease.")
    usage = request.usage
    return Settlement(
        request.lease_id,
        max(1, request.attempt),
        _SOURCES.get(request.source, Source.EDGE),
        _OUTCOMES.get(request.outcome, Outcome.UNSPECIFIED),
        Usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens),
        # A request may name no model; what answered then is the base itself.
        request.model[:_MAX_NAME] or request.base_model[:_MAX_NAME],
        request.host[:_MAX_NAME],
        request.base_model[:_MAX_NAME],
    )


def fill_state(message: pb.RateLimitState, state: LimitState) -> None:
    message.limit = state.limit
    message.remaining = state.remaining
    message.reset_ms = _milliseconds(state.reset_ns)


def _milliseconds(duration_ns: int) -> int:
    """Rounded up, so that waiting for it is enough."""
    return min(_MAX_UINT32, -(-duration_ns // _NS_PER_MS))
