"""Lets a request through if its key may do what the route is for, and remembers whose it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPBearer

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.ids import accept_request_id
from vllm_proxy.edge.admission import AdmissionRefused, AuthClient
from vllm_proxy.edge.credentials import api_key_sha256, client_address, client_is_local

#: For the API's description; what stands in the header is read here, not by it.
BEARER = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="`Authorization: Bearer sk-…`")


def requires(auth: AuthClient, operation: auth_pb2.Operation) -> Callable[..., Awaitable[None]]:
    """A FastAPI dependency, which leaves the auth service's answer in `request.state.admission`, and after which
    `actor_of` knows who asks. Raises InvalidApiKey, PermissionDenied, AuthUnavailable."""

    async def authorize(request: Request, _key: Annotated[object, Security(BEARER)]) -> None:
        headers: dict[bytes, bytes] = dict(request.scope["headers"])
        request_id = accept_request_id(headers.get(b"x-request-id"))
        try:
            request.state.admission = answer = await auth.admit(
                auth_pb2.AdmitRequest(
                    api_key_sha256=api_key_sha256(headers),
                    operation=operation,
                    request_id=request_id,
                    client_is_local=client_is_local(request.scope, headers),
                )
            )
        except AdmissionRefused as e:
            raise e.error from None
        request.state.actor = auth_pb2.Actor(
            key_id=answer.key_id,
            user=answer.user,
            client_address=client_address(request.scope, headers),
            request_id=request_id,
        )

    return authorize


def actor_of(request: Request) -> auth_pb2.Actor:
    """Who asks, for the audit log."""
    actor: auth_pb2.Actor = request.state.actor
    return actor
