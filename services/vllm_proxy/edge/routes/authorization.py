"""Lets a request through if its key may do what the route is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.ids import accept_request_id
from vllm_proxy.edge.admission import AdmissionRefused, AuthClient
from vllm_proxy.edge.credentials import api_key_sha256, client_is_local


def requires(auth: AuthClient, operation: auth_pb2.Operation) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency, which leaves the auth service's answer in `request.state.admission`. Raises
    InvalidApiKey, PermissionDenied, AuthUnavailable."""

    async def authorize(request: Request) -> None:
        headers: dict[bytes, bytes] = dict(request.scope["headers"])
        try:
            request.state.admission = await auth.admit(
                auth_pb2.AdmitRequest(
                    api_key_sha256=api_key_sha256(headers),
                    operation=operation,
                    request_id=accept_request_id(headers.get(b"x-request-id")),
                    client_is_local=client_is_local(request.scope, headers),
                )
            )
        except AdmissionRefused as e:
            raise e.error from None

    return authorize
