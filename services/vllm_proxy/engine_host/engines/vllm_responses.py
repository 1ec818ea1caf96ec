"""vLLM's stored responses (`VLLM_ENABLE_RESPONSES_API_STORE=1`), each for the key that made it and not for ever.

vLLM stores under an id that a client may choose, gives a response to whoever names it, and forgets none. Written
against vLLM 0.32 (`vllm/entrypoints/openai/responses/serving.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_proxy.common.response_ids import ResponseIds
from vllm_proxy.engine_host.engines.base import current_key_id


class OwnedResponses:
    """Stands before the methods of a serving layer's `OpenAIServingResponses`. Requests that did not come through the
    gateway (the engine's own port) see everything."""

    def __init__(
        self, serving: Any, ids: ResponseIds, max_stored: int, ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._serving = serving
        self._ids = ids
        self._max_stored = max_stored
        self._ttl_s = ttl_s
        self._clock = clock
        #: When each was made, the oldest first.
        self._made_at: dict[str, float] = {}
        self._create = serving.create_responses
        self._retrieve = serving.retrieve_responses
        self._cancel = serving.cancel_responses
        serving.create_responses = self.create
        serving.retrieve_responses = self.retrieve
        serving.cancel_responses = self.cancel

    async def create(self, request: Any, raw_request: Any = None) -> Any:
        key_id = current_key_id.get()
        if key_id is not None:
            # A client must not name another's response, nor another's request in the engine.
            request.request_id = self._ids.make(key_id)
            previous = request.previous_response_id
            if previous in self._serving.response_store and not self._ids.belongs(previous, key_id):
                return self._serving._make_not_found_error(previous)
            if request.background and self._serving.enable_store:
                # It would go on after its lease is settled.
                return self._serving.create_error_response(
                    message="Background responses are not served here: leave out `background`.",
                    err_type="invalid_request_error",
                    param="background",
                )
        if self._serving.enable_store and request.store:
            self._made_at[request.request_id] = self._clock()
        self._forget_old()
        return await self._create(request, raw_request)

    async def retrieve(self, response_id: str, *arguments: Any, **named: Any) -> Any:
        self._forget_old()
        if not self._may_see(response_id):
            return self._serving._make_not_found_error(response_id)
        return await self._retrieve(response_id, *arguments, **named)

    async def cancel(self, response_id: str) -> Any:
        if not self._may_see(response_id):
            return self._serving._make_not_found_error(response_id)
        return await self._cancel(response_id)

    def _may_see(self, response_id: str) -> bool:
        key_id = current_key_id.get()
        return key_id is None or self._ids.belongs(response_id, key_id)

    def _forget_old(self) -> None:
        too_old = self._clock() - self._ttl_s
        while self._made_at:
            response_id, made_at = next(iter(self._made_at.items()))
            if len(self._made_at) <= self._max_stored and made_at > too_old:
                return
            del self._made_at[response_id]
            for store in (self._serving.response_store, self._serving.msg_store, self._serving.event_store):
                store.pop(response_id, None)
