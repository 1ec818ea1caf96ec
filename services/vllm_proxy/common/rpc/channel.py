"""Opens channels to other services: keepalive, message limits, the shared token, quick reconnection."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from vllm_proxy.common.ids import TOKEN_METADATA
from vllm_proxy.common.rpc.address import dial_target, is_unix
from vllm_proxy.common.rpc.tls import channel_credentials, channel_options
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE, Grpc


def open_channel(address: str, settings: Grpc) -> grpc.aio.Channel:
    """A channel to `address`: `unix:PATH`, `host:port`, or several, of which it takes one that answers. Make it after
    any fork, close it in an exit stack. Raises ConfigError if the files of grpc.tls cannot be used."""
    interceptors: list[grpc.aio.ClientInterceptor] = []
    if token := os.environ.get(INTERNAL_TOKEN_VARIABLE):
        interceptors = [
            _UnaryUnaryToken(token),
            _UnaryStreamToken(token),
            _StreamUnaryToken(token),
            _StreamStreamToken(token),
        ]
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", int(settings.reconnect_min_s * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(settings.reconnect_min_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(settings.reconnect_max_s * 1000)),
        # A name may stand for another replica a moment later.
        ("grpc.dns_min_time_between_resolutions_ms", int(settings.reconnect_max_s * 1000)),
        # A restarted peer is another process: never share a connection's backoff state between channels.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    target = dial_target(address)
    if settings.tls.certificate is None or is_unix(address):
        return grpc.aio.insecure_channel(target, interceptors=interceptors, options=options)
    options += channel_options(settings.tls)
    credentials = channel_credentials(settings.tls)
    return grpc.aio.secure_channel(target, credentials, interceptors=interceptors, options=options)


def open_blocking_channel(address: str, settings: Grpc) -> grpc.Channel:
    """For scripts that ask one question, such as a health check; without the shared token. Raises ConfigError."""
    if settings.tls.certificate is None or is_unix(address):
        return grpc.insecure_channel(dial_target(address))
    return grpc.secure_channel(dial_target(address), channel_credentials(settings.tls), channel_options(settings.tls))


class _Token:
    def __init__(self, token: str) -> None:
        self._token = token

    async def _call(self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), (TOKEN_METADATA, self._token))
        return await continuation(details._replace(metadata=metadata), request)


class _UnaryUnaryToken(_Token, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._call(continuation, client_call_details, request)


class _UnaryStreamToken(_Token, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._call(continuation, client_call_details, request)


class _StreamUnaryToken(_Token, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._call(continuation, client_call_details, request_iterator)


class _StreamStreamToken(_Token, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._call(continuation, client_call_details, request_iterator)
