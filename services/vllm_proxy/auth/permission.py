"""What a key may do at all, whatever it has used."""

from __future__ import annotations

from vllm_proxy.auth.decision import Ask
from vllm_proxy.auth.keys import ApiKey
from vllm_proxy.auth.lease import Operation
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.common.errors import (
    InvalidApiKey,
    InvalidRequest,
    KeyDisabled,
    KeyExpired,
    ModelNotAllowed,
    PermissionDenied,
    TooManyResponseTokens,
)
from vllm_proxy.common.model_patterns import patterns_of


def not_allowed(key: ApiKey, ask: Ask, now_ms: int) -> Refusal | None:
    if not key.enabled:
        return Refusal(KeyDisabled.reason, KeyDisabled.default_message)
    if key.expires_at_ms is not None and now_ms >= key.expires_at_ms:
        return Refusal(KeyExpired.reason, KeyExpired.default_message)
    if key.is_default and not ask.client_is_local:
        return Refusal(
            InvalidApiKey.reason, "The published default API key is accepted from the gateway's own machine only."
        )
    if ask.operation is Operation.ADMIN and not key.is_admin:
        return Refusal(PermissionDenied.reason, "This needs an API key of the user admin.")
    if ask.operation is Operation.UNSPECIFIED:
        return Refusal(InvalidRequest.reason, "The operation is not set.")
    models = key.rules.models
    if models is not None and ask.operation is Operation.INFERENCE and not ask.names_no_model:
        if not ask.model:
            # The engine would choose one.
            return Refusal(
                ModelNotAllowed.reason, "This API key may use certain models only: the request must name one."
            )
        if patterns_of(models).match(ask.model) is None:
            return Refusal(ModelNotAllowed.reason, f"This API key may not use the model {ask.model!r}.")
    return None


def too_many_response_tokens(cap: int) -> Refusal:
    return Refusal(
        TooManyResponseTokens.reason,
        f"This API key may ask for at most {cap} tokens in one answer (max_tokens or max_completion_tokens).",
        "max_response_tokens",
    )
