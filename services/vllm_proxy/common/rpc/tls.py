"""Mutual TLS between services: each shows a certificate of the configured CA and asks for one."""

from __future__ import annotations

from pathlib import Path

import grpc

from vllm_proxy.common.settings import ConfigError, GrpcTls


def server_credentials(tls: GrpcTls) -> grpc.ServerCredentials:
    """Raises ConfigError if a file cannot be read or used."""
    certificate, key, ca = _files(tls)
    try:
        return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    except Exception as e:
        raise ConfigError(f"grpc.tls: the certificate or the key cannot be used: {e}") from None


def channel_credentials(tls: GrpcTls) -> grpc.ChannelCredentials:
    """Raises ConfigError if a file cannot be read."""
    certificate, key, ca = _files(tls)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def channel_options(tls: GrpcTls) -> list[tuple[str, str]]:
    """What the peer must be called, if it is not what it is dialled by."""
    return [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []


def _files(tls: GrpcTls) -> tuple[bytes, bytes, bytes]:
    def read(name: str, path: Path | None) -> bytes:
        assert path is not None, "checked with the settings"
        try:
            return path.read_bytes()
        except OSError as e:
            raise ConfigError(f"grpc.tls.{name}: {path}: {e.strerror}") from None

    return read("certificate", tls.certificate), read("key", tls.key), read("ca", tls.ca)
