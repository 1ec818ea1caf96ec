"""What the edge needs of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_proxy.common.settings import Grpc, LoadedSettings, Tracing


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    host: str
    port: int
    auth_address: str
    router_address: str
    grpc: Grpc
    run_dir: Path
    log_dir: Path
    log_stems: tuple[str, ...]
    """The names of all workers' log files and of those that have no service to ask, without `.log`."""
    max_body_bytes: int
    max_buffered_bytes: int
    max_header_bytes: int
    request_timeout_s: float
    body_timeout_s: float
    client_stall_timeout_s: float
    response_window_bytes: int
    admission_timeout_s: float
    auth_silence_timeout_s: float
    capacity_wait_s: float
    retry_wait_s: float
    drain_timeout_s: float
    drain_notice_s: float
    drain_idle_s: float
    keep_alive_timeout_s: float
    sse_keepalive_s: float
    server_timing: bool
    cors_origins: tuple[str, ...]
    allow_private_media_urls: bool
    model_aliases: Mapping[str, str]
    default_model: str | None
    adapter_timeout_s: float
    tracing: Tracing

    @classmethod
    def from_settings(cls, loaded: LoadedSettings) -> EdgeConfig:
        settings = loaded.settings
        edge = settings.edge
        return cls(
            host=settings.fastapi_host,
            port=settings.fastapi_port,
            auth_address=settings.auth.address,
            router_address=settings.router.address,
            grpc=settings.grpc,
            run_dir=settings.run_dir,
            log_dir=settings.logs.dir,
            # A worker that is the only one has no number.
            log_stems=(
                "fastapi",
                "nginx-access",
                "nginx-error",
                "supervisord",
                *(f"fastapi-{number}" for number in range(settings.fastapi_workers)),
            ),
            max_body_bytes=edge.max_body_bytes,
            max_buffered_bytes=edge.max_buffered_bytes,
            max_header_bytes=edge.max_header_bytes,
            request_timeout_s=edge.request_timeout_s,
            body_timeout_s=edge.body_timeout_s,
            client_stall_timeout_s=edge.client_stall_timeout_s,
            response_window_bytes=edge.response_window_bytes,
            admission_timeout_s=edge.admission_timeout_s,
            auth_silence_timeout_s=edge.auth_silence_timeout_s,
            capacity_wait_s=edge.capacity_wait_s,
            retry_wait_s=edge.retry_wait_s,
            drain_timeout_s=edge.drain_timeout_s,
            drain_notice_s=edge.drain_notice_s,
            drain_idle_s=edge.drain_idle_s,
            keep_alive_timeout_s=edge.keep_alive_timeout_s,
            sse_keepalive_s=edge.sse_keepalive_s,
            server_timing=edge.server_timing,
            cors_origins=tuple(edge.cors_origins),
            allow_private_media_urls=edge.allow_private_media_urls,
            model_aliases=settings.model_aliases,
            default_model=settings.default_model,
            adapter_timeout_s=settings.router.adapter_timeout_s,
            tracing=settings.tracing,
        )
