"""The hot endpoint: an engine route. Peek into the body, have it admitted, hand it to a host."""

from __future__ import annotations

import math

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.engine_routes import EngineRoute, ModelIn, engine_path
from vllm_proxy.common.errors import InvalidRequest, ServiceError
from vllm_proxy.common.ids import accept_request_id
from vllm_proxy.common.response_ids import tag_of
from vllm_proxy.common.tracing.context import accept_traceparent
from vllm_proxy.edge import request_trace
from vllm_proxy.edge.admission import Settlement, rate_limit_headers, refusal
from vllm_proxy.edge.answer_limit import with_limit
from vllm_proxy.edge.content_coding import decoded
from vllm_proxy.edge.credentials import api_key_sha256, client_is_local
from vllm_proxy.edge.exchange import Exchange, ExchangeContext
from vllm_proxy.edge.form_body import peek_form
from vllm_proxy.edge.http_request import HttpRequest
from vllm_proxy.edge.media_urls import may_name_urls, refuse_private
from vllm_proxy.edge.model_names import ModelNames, form_with_model, with_model
from vllm_proxy.edge.prompt_script import script_of
from vllm_proxy.edge.request import CLIENT_CLOSED_REQUEST, CLIENT_GONE, RequestFacts, log_request
from vllm_proxy.edge.request_body import BodyPeek, peek

#: The request headers that an engine needs. Never Authorization, Origin or Cookie.
_FORWARDED = (b"content-type", b"accept", b"anthropic-version", b"anthropic-beta")


class InferenceEndpoint:
    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        self._names: ModelNames
        self.max_body_bytes: int
        self.follow_config()

    def follow_config(self) -> None:
        """Takes what it keeps of the context's configuration."""
        config = self._context.config
        self._names = ModelNames(self._context.hosts.table, config.model_aliases, config.default_model)
        self.max_body_bytes = config.max_body_bytes

    def body_limit_bytes(self, request: HttpRequest) -> int:
        """Raises InvalidApiKey for a request without a key, before it sends its body."""
        api_key_sha256(request.headers)
        return self.max_body_bytes

    def handle(self, request: HttpRequest, route: EngineRoute) -> None:
        _Admission(self._context, self._names, request, self._facts(request, route)).begin()

    def refuse(self, request: HttpRequest, route: EngineRoute, error: ServiceError) -> None:
        """Answers a request that auth is not even asked about."""
        _refuse(self._context, request, self._facts(request, route), error)

    def _facts(self, request: HttpRequest, route: EngineRoute) -> RequestFacts:
        headers = request.headers
        request_id = accept_request_id(headers.get(b"x-request-id"))
        facts = RequestFacts(
            request_id=request_id,
            route=route,
            path=engine_path(route, request.path),
            query=request.query,
            headers=[(name, headers[name]) for name in _FORWARDED if name in headers],
            traceparent=accept_traceparent(headers.get(b"traceparent")),
            started_at=self._context.clock(),
            answer_headers=[(b"x-request-id", request_id.encode())],
        )
        if (tracer := self._context.tracer) is not None:
            request_trace.begin(tracer, request, facts)
        return facts


class _Admission:
    """A request on its way to a host: the ResponseOwner until its Exchange is. What has to wait for more than the auth
    service, which few requests do, waits in a task."""

    __slots__ = (
        "_asked_at",
        "_client_left",
        "_context",
        "_facts",
        "_lease_id",
        "_longest_answer",
        "_names",
        "_request",
        "_seq",
    )

    def __init__(self, context: ExchangeContext, names: ModelNames, request: HttpRequest, facts: RequestFacts) -> None:
        self._context = context
        self._names = names
        self._request = request
        self._facts = facts
        self._asked_at = 0.0
        self._seq = 0
        self._lease_id = ""
        #: Tokens; infinite if it has no end of its own, 0 if there is nothing that could be limited.
        self._longest_answer = 0.0
        self._client_left = False

    def begin(self) -> None:
        self._request.response.owner = self
        coding = self._request.headers.get(b"content-encoding")
        if coding is None:
            self._ask()
        else:
            self._context.spawn(self._unpack(coding), "unpack")

    async def _unpack(self, coding: bytes) -> None:
        request = self._request
        try:
            body = await decoded(request.body, coding, self._context.config.max_body_bytes, self._hold)
            request.replace_body(body)
        except ServiceError as e:
            self._refuse(e)
            return
        if not self._client_left:
            self._ask()

    def _hold(self, size_bytes: int) -> None:
        """Raises NoCapacity; and InvalidRequest, which nobody is told, when the client has left."""
        if self._client_left:
            raise InvalidRequest
        self._request.hold(size_bytes)

    def _ask(self) -> None:
        context, request, facts = self._context, self._request, self._facts
        try:
            body = _peek(request, facts.route)
            facts.model = self._names.meant(body.model)
            if facts.model is not None and facts.model != body.model:
                _rename(request, facts)
        except ServiceError as e:
            self._refuse(e)
            return
        self._longest_answer = _longest_answer(facts.route, body)
        if facts.route.of_response:
            facts.holder_tag = tag_of(facts.path.split("/")[3])
        elif body.previous_response_id:
            facts.holder_tag = tag_of(body.previous_response_id)
        admit = self._admit_request(body)
        self._asked_at = context.clock()
        if facts.trace is not None:
            admit.traceparent = facts.trace.asked(self._asked_at)
        self._seq = context.auth.ask(admit, self._answered)

    def _admit_request(self, body: BodyPeek) -> auth_pb2.AdmitRequest:
        # Field by field, and only what is not the default: a third of what the constructor costs.
        request, facts = self._request, self._facts
        admit = auth_pb2.AdmitRequest()
        admit.api_key_sha256 = api_key_sha256(request.headers)
        admit.operation = auth_pb2.OPERATION_INFERENCE
        admit.request_id = facts.request_id
        if facts.model:
            admit.model = facts.model
        if body.prompt_tokens:
            admit.prompt_tokens_estimate = body.prompt_tokens
        if body.prompt_bytes:
            admit.prompt_bytes = body.prompt_bytes
            admit.prompt_script = script_of(request.body)
        if body.response_tokens is not None:
            admit.response_tokens = body.response_tokens
        admit.choices = body.choices
        if client_is_local(request.origin, request.headers):
            admit.client_is_local = True
        if facts.route.model_in is ModelIn.NOWHERE:
            admit.names_no_model = True
        return admit

    def _answered(self, answer: auth_pb2.AdmitResponse | ServiceError) -> None:
        context, request, facts = self._context, self._request, self._facts
        if isinstance(answer, ServiceError):
            self._refuse(answer)
            return
        facts.key_id, facts.user = answer.key_id, answer.user
        facts.answer_headers += rate_limit_headers(answer)
        if not answer.admitted:
            facts.limit, facts.limit_scope = answer.limit_name, answer.limit_scope
            self._refuse(refusal(answer))
            return
        self._lease_id = answer.lease_id
        facts.admission_s = context.clock() - self._asked_at
        context.metrics.admission_s.add(facts.admission_s)
        facts.priority, facts.reserved_tokens = answer.priority, answer.reserved_tokens
        if answer.HasField("max_response_tokens") and self._longest_answer > answer.max_response_tokens:
            # One that says how long it may be may do so in any of the fields.
            fields = facts.route.limits[:1] if self._longest_answer == math.inf else facts.route.limits
            try:
                request.replace_body(with_limit(request.body, fields, answer.max_response_tokens))
            except ServiceError as e:
                self._refuse(e)
                return
        may_look_in = not context.config.allow_private_media_urls and facts.route.model_in is ModelIn.BODY
        if may_look_in and may_name_urls(request.body):
            # After the admission: looking names up is not for strangers.
            context.spawn(self._check_media(), "media")
        else:
            self._hand_over()

    async def _check_media(self) -> None:
        try:
            await refuse_private(self._request.body)
        except ServiceError as e:
            self._refuse(e)
            return
        if not self._client_left:
            self._hand_over()

    def _hand_over(self) -> None:
        Exchange(self._context, self._facts, self._lease_id, self._request).begin()

    def _refuse(self, error: ServiceError) -> None:
        if not self._client_left:
            self._give_lease_back()
            self._request.response.owner = None
            _refuse(self._context, self._request, self._facts, error)

    def _give_lease_back(self) -> None:
        if self._lease_id:
            model = self._facts.model or ""
            self._context.auth.settle(Settlement(self._lease_id, 1, auth_pb2.OUTCOME_NOT_SENT, model))

    # ResponseOwner

    def written(self, size_bytes: int) -> None: ...

    def sent(self) -> None: ...

    def client_left(self) -> None:
        self._client_left = True
        self._context.auth.abandon(self._seq)
        self._give_lease_back()
        _account(self._context, self._facts, CLIENT_CLOSED_REQUEST, CLIENT_GONE)


def _longest_answer(route: EngineRoute, body: BodyPeek) -> float:
    """Tokens of each answer that the request asks for; infinite: for as long as the engine likes; 0 on routes whose
    answers have no limit. Chat's engines may take 0 as not given."""
    if not route.limits:
        return 0
    if body.response_tokens is None or (not body.response_tokens and len(route.limits) > 1):
        return math.inf
    return body.response_tokens / max(1, body.choices)


def _peek(request: HttpRequest, route: EngineRoute) -> BodyPeek:
    """Raises InvalidRequest."""
    match route.model_in:
        case ModelIn.BODY:
            return peek(request.body, route.work, route.limits)
        case ModelIn.FORM:
            return peek_form(request.body, request.headers.get(b"content-type", b""))
        case ModelIn.NOWHERE:
            return BodyPeek(response_tokens=0)


def _rename(request: HttpRequest, facts: RequestFacts) -> None:
    """Makes the body name the model that is meant. Raises NoCapacity."""
    assert facts.model is not None
    match facts.route.model_in:
        case ModelIn.BODY:
            request.replace_body(with_model(request.body, facts.model))
        case ModelIn.FORM:
            content_type = request.headers.get(b"content-type", b"")
            request.replace_body(form_with_model(request.body, content_type, facts.model))
        case ModelIn.NOWHERE:
            facts.model = None


def _refuse(context: ExchangeContext, request: HttpRequest, facts: RequestFacts, error: ServiceError) -> None:
    _account(context, facts, error.http_status, error.reason, error.retry_after_s)
    request.response.send_error(error, facts.answer_headers, facts.route.errors)


def _account(
    context: ExchangeContext, facts: RequestFacts, status: int, reason: str, retry_after_s: float | None = None
) -> None:
    """Accounts for a request that never got to a host."""
    context.metrics.requests[facts.route.name, context.model_label(facts), status, reason] += 1
    now = context.clock()
    log_request(facts, status, now - facts.started_at, reason=reason, retry_after_s=retry_after_s)
    if facts.trace is not None:
        facts.trace.refused(facts, status, reason, now)
