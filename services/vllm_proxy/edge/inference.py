"""The hot endpoint: an engine route as raw ASGI. Read, admit, send to a host, wait until the client has it all."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.engine_routes import EngineRoute, ErrorShape, ModelIn
from vllm_proxy.common.errors import ServiceError
from vllm_proxy.common.ids import accept_request_id, accept_traceparent
from vllm_proxy.common.response_ids import tag_of
from vllm_proxy.edge.admission import AdmissionGivenUp, AdmissionRefused, Settlement, rate_limit_headers
from vllm_proxy.edge.answer_limit import with_limit
from vllm_proxy.edge.content_coding import decoded
from vllm_proxy.edge.credentials import api_key_sha256, client_is_local
from vllm_proxy.edge.errors import HeaderList, error_response
from vllm_proxy.edge.exchange import Exchange, ExchangeContext
from vllm_proxy.edge.form_body import peek_form
from vllm_proxy.edge.http_protocol import connection_of
from vllm_proxy.edge.media_urls import refuse_private
from vllm_proxy.edge.model_names import ModelNames, form_with_model, with_model
from vllm_proxy.edge.prompt_script import script_of
from vllm_proxy.edge.request import CLIENT_CLOSED_REQUEST, CLIENT_GONE, RequestFacts, log_request
from vllm_proxy.edge.request_body import BodyPeek, ClientGone, peek, read_body
from vllm_proxy.edge.response_writer import Message, Receive, Scope, Send
from vllm_proxy.edge.stepping import Finished, Suspended, step

#: The request headers that an engine needs. Never Authorization, Origin or Cookie.
_FORWARDED = (b"content-type", b"accept", b"anthropic-version", b"anthropic-beta")


class InferenceEndpoint:
    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        config = context.config
        self._names = ModelNames(context.hosts.table, config.model_aliases, config.default_model)

    async def __call__(self, route: EngineRoute, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._context
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = accept_request_id(headers.get(b"x-request-id"))
        request = RequestFacts(
            request_id=request_id,
            route=route,
            path=path,
            query=scope["query_string"],
            headers=[(name, headers[name]) for name in _FORWARDED if name in headers],
            traceparent=accept_traceparent(headers.get(b"traceparent")),
            started_at=context.clock(),
            answer_headers=[(b"x-request-id", request_id.encode())],
        )
        try:
            key = api_key_sha256(headers)
            request.body = await read_body(
                receive,
                headers.get(b"content-length"),
                context.config.max_body_bytes,
                context.config.body_timeout_s,
            )
            if (coding := headers.get(b"content-encoding")) is not None:
                request.body = await decoded(request.body, coding, context.config.max_body_bytes)
            # Whether the client leaves shows in `receive` from now on.
            watch = step(receive())
            leaves = watch.waiting_for if isinstance(watch, Suspended) else None
            lease_id = await self._admit(request, key, client_is_local(scope, headers), leaves)
            await self._refuse_private_media(request, lease_id)
        except (ClientGone, AdmissionGivenUp):
            self._finished(request, CLIENT_CLOSED_REQUEST, CLIENT_GONE)
            return
        except AdmissionRefused as e:
            request.answer_headers += rate_limit_headers(e.answer)
            request.limit, request.limit_scope = e.answer.limit_name, e.answer.limit_scope
            await self._refuse(request, send, e.error)
            return
        except ServiceError as e:
            await self._refuse(request, send, e)
            return
        if isinstance(watch, Finished) or watch.ready:
            context.auth.settle(Settlement(lease_id, 1, auth_pb2.OUTCOME_NOT_SENT, request.model or ""))
            self._finished(request, CLIENT_CLOSED_REQUEST, CLIENT_GONE)
            return
        exchange = Exchange(context, request, lease_id, send, connection_of(scope))
        try:
            exchange.begin()
            # Servers answer http.disconnect when the connection has ended and also when the response is complete.
            message: Message = await watch
            while message["type"] != "http.disconnect":
                message = await receive()
        except asyncio.CancelledError:
            # The server's last word at a stop. This coroutine is its task's root, so nobody above needs to know.
            exchange.shut_down()
        finally:
            exchange.client_left()

    async def _admit(
        self, request: RequestFacts, key: bytes, is_local: bool, leaves: asyncio.Future[Any] | None
    ) -> str:
        """The lease. Raises AdmissionRefused, AuthUnavailable, InvalidRequest."""
        body = _peek(request)
        request.model = self._names.meant(body.model)
        if request.model is not None and request.model != body.model:
            _rename(request, request.model)
        if request.route.of_response:
            request.holder_tag = tag_of(request.path.split("/")[3])
        elif body.previous_response_id:
            request.holder_tag = tag_of(body.previous_response_id)
        asked = auth_pb2.AdmitRequest(
            api_key_sha256=key,
            operation=auth_pb2.OPERATION_INFERENCE,
            request_id=request.request_id,
            model=request.model or "",
            prompt_tokens_estimate=body.prompt_tokens,
            prompt_bytes=body.prompt_bytes,
            prompt_script=script_of(request.body) if body.prompt_bytes else auth_pb2.PROMPT_SCRIPT_UNSPECIFIED,
            response_tokens=body.response_tokens,
            choices=body.choices,
            client_is_local=is_local,
            names_no_model=request.route.model_in is ModelIn.NOWHERE,
        )
        asked_at = self._context.clock()
        try:
            answer = await self._context.auth.admit(asked, leaves)
        except AdmissionRefused as e:
            request.key_id, request.user = e.answer.key_id, e.answer.user
            raise
        request.admission_s = self._context.clock() - asked_at
        self._context.metrics.admission_s.add(request.admission_s)
        request.key_id, request.user = answer.key_id, answer.user
        request.answer_headers += rate_limit_headers(answer)
        request.priority, request.reserved_tokens = answer.priority, answer.reserved_tokens
        if answer.HasField("max_response_tokens") and _is_open_ended(request.route, body):
            try:
                request.body = with_limit(request.body, request.route.limits[0], answer.max_response_tokens)
            except ServiceError:
                self._context.auth.settle(
                    Settlement(answer.lease_id, 1, auth_pb2.OUTCOME_NOT_SENT, request.model or "")
                )
                raise
        return answer.lease_id

    async def _refuse_private_media(self, request: RequestFacts, lease_id: str) -> None:
        """Raises InvalidRequest. After the admission: looking names up is not for strangers."""
        if self._context.config.allow_private_media_urls or request.route.model_in is not ModelIn.BODY:
            return
        try:
            await refuse_private(request.body)
        except BaseException:
            self._context.auth.settle(Settlement(lease_id, 1, auth_pb2.OUTCOME_NOT_SENT, request.model or ""))
            raise

    async def _refuse(self, request: RequestFacts, send: Send, error: ServiceError) -> None:
        self._finished(request, error.http_status, error.reason, error.retry_after_s)
        await send_error(send, error, request.answer_headers, request.route.errors)

    def _finished(self, request: RequestFacts, status: int, reason: str, retry_after_s: float | None = None) -> None:
        """Accounts for a request that never got to a host."""
        model = self._context.model_label(request)
        self._context.metrics.requests[request.route.name, model, status, reason] += 1
        duration_s = self._context.clock() - request.started_at
        log_request(request, status, duration_s, reason=reason, retry_after_s=retry_after_s)


def _is_open_ended(route: EngineRoute, body: BodyPeek) -> bool:
    """Whether an answer goes on for as long as the engine likes. Chat's engines may take 0 as not given."""
    return bool(route.limits) and (body.response_tokens is None or (not body.response_tokens and len(route.limits) > 1))


def _peek(request: RequestFacts) -> BodyPeek:
    """Raises InvalidRequest."""
    match request.route.model_in:
        case ModelIn.BODY:
            return peek(request.body, request.route.work, request.route.limits)
        case ModelIn.FORM:
            return peek_form(request.body, dict(request.headers).get(b"content-type", b""))
        case ModelIn.NOWHERE:
            return BodyPeek(response_tokens=0)


def _rename(request: RequestFacts, model: str) -> None:
    """Makes the body name the model that is meant."""
    match request.route.model_in:
        case ModelIn.BODY:
            request.body = with_model(request.body, model)
        case ModelIn.FORM:
            content_type = dict(request.headers).get(b"content-type", b"")
            request.body = form_with_model(request.body, content_type, model)
        case ModelIn.NOWHERE:
            request.model = None


async def send_error(
    send: Send, error: ServiceError, extra: HeaderList | None = None, shape: ErrorShape = ErrorShape.OPENAI
) -> None:
    """Answers a request with an error."""
    status, headers, body = error_response(error, extra, shape)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
