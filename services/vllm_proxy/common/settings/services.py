"""The edge, auth, the router, and what surrounds them: gRPC, logs, nginx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from vllm_proxy.common.settings.fields import Address, Addresses, Port, PositiveInt, PositiveSeconds, Section
from vllm_proxy.common.settings.values import checked_store


class Edge(Section):
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """A larger request body is answered with 413."""
    max_buffered_bytes: PositiveInt = 512 * 1024 * 1024
    """Request bodies that one worker holds, all together; what would exceed it is answered with 503."""
    max_header_bytes: PositiveInt = 64 * 1024
    """Larger request headers are answered with 431."""
    request_timeout_s: PositiveSeconds = 3600
    """From the last byte of the request to the last byte of the response."""
    body_timeout_s: PositiveSeconds = 60
    """How long a client may take to send its headers, and again to send its body."""
    client_stall_timeout_s: PositiveSeconds = 120
    """A client that reads nothing for so long is cut off; a slow one never is."""
    response_window_bytes: Annotated[int, Field(ge=16 * 1024)] = 256 * 1024
    """Response bytes of one request that may be on their way to a client."""
    admission_timeout_s: PositiveSeconds = 10
    """How long a request waits for the auth service, its restart included."""
    auth_silence_timeout_s: PositiveSeconds = 3
    """An auth service that gives no sign of life for so long is left, with all that it has not answered, for one that
    does: a frozen replica keeps its connections."""
    capacity_wait_s: Annotated[float, Field(ge=0)] = 5
    """How long a request waits for an engine host when none is there, before 503."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 1
    """The same for one whose host failed before anything was answered, before 502."""
    drain_timeout_s: PositiveSeconds = 30
    """How long running requests may take to end at a stop."""
    drain_notice_s: Annotated[float, Field(ge=0)] = 0
    """How long /health says 503 before the listener closes, so that balancers see it."""
    drain_idle_s: Annotated[float, Field(ge=0)] = 2
    """How long a stop leaves an idle client connection open, so that a request that is on its way on it is answered;
    with `connection: close`. Checked once a second; 0: not at all."""
    keep_alive_timeout_s: PositiveSeconds = 75
    """How long an idle client connection stays open."""
    sse_keepalive_s: Annotated[float, Field(ge=0)] = 0
    """After so long without an event, a stream gets a comment line; 0: never. Checked once a second."""
    server_timing: bool = False
    """Whether answers say in `server-timing` how long admission, routing and the first byte took."""
    cors_origins: list[str] = []
    """Origins of web pages that may use the API, such as https://chat.example.com; `*`: all. Empty: none."""
    allow_private_media_urls: bool = False
    """Whether the engine may be sent to addresses that are not public for images, sounds and videos."""


class Auth(Section):
    address: Addresses = "unix:.run/auth.sock"
    """Where AuthService is: unix:PATH or host:port; of several replicas all, as ip:port,ip:port, or one DNS name."""
    listen_address: Address | None = None
    """Where this replica listens; null: at address."""
    store: Annotated[str, AfterValidator(checked_store)] = "sqlite:state/auth.db"
    """Where leases and usage are kept: sqlite:PATH, or the URL of a Redis or Valkey, which several replicas share."""
    synchronous: Literal["normal", "full"] = "normal"
    """SQLite durability: normal survives kill -9, full also a power cut."""
    redis_prefix: Annotated[str, Field(min_length=1, pattern=r"^[^{}\s]+$")] = "vllm-proxy"
    """What every key in Redis begins with, in braces, so that all lie in one slot of a cluster."""
    redis_timeout_s: PositiveSeconds = 2
    """An answer of Redis that takes longer counts as an outage."""
    leadership_ttl_s: Annotated[float, Field(ge=0.5)] = 3
    """How long after the death of the replica that decides another one takes over."""
    store_outage: Literal["fail_closed", "fail_open"] = "fail_closed"
    """While Redis is away: fail_closed admits nothing new (503); fail_open admits and keeps the records in memory."""
    store_outage_buffer: PositiveInt = 500_000
    """Records (two a request) that fail_open keeps in memory; beyond it nothing is admitted."""
    default_response_tokens: PositiveInt = 1024
    """Response tokens to reserve when a request does not say max_tokens."""
    max_response_tokens: PositiveInt | None = None
    """Tokens of one answer that a key may ask for, unless the key says otherwise; null: unlimited. Transcriptions and
    translations of sound cannot be asked to end earlier: they are charged, not cut."""
    priority_classes: dict[str, Annotated[int, Field(ge=-1000, le=1000)]] = {"high": -10, "normal": 0, "low": 10}
    """Classes that a key's `priority` may name; a lower number goes first. Must have `normal`, the default."""
    admission_wait_ms: Annotated[int, Field(ge=0)] = 0
    """How long a request waits for room under its limits instead of being refused; 0: not at all. A key may say
    otherwise. At most edge.admission_timeout_s less half a second."""
    admission_queue_size: PositiveInt = 10_000
    """Requests that wait so at once, a quarter of them of one key; more are refused."""
    lease_ttl_s: PositiveSeconds = 30
    """A lease that nobody renews for so long lapses."""
    settle_grace_s: PositiveSeconds = 300
    """How long a host's count may still replace an edge's."""
    cached_token_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What a prompt token that came from the prefix cache is charged, as a share of a token."""
    ledger_retention_days: PositiveInt = 90
    """How long single settlements are kept; their sums by hour, key, user and model stay."""
    audit_retention_days: PositiveInt = 365
    """How long the audit log tells who administered what."""
    rotation_overlap_s: Annotated[float, Field(ge=0, le=31_536_000)] = 86_400
    """How long a key's old secret stays good after a rotation, unless the rotation says otherwise."""
    metrics_port: Port | None = None
    """If set, Prometheus metrics are served there on loopback."""
    drain_timeout_s: PositiveSeconds = 5

    @field_validator("priority_classes")
    @classmethod
    def _has_normal(cls, value: dict[str, int]) -> dict[str, int]:
        if "normal" not in value:
            raise ValueError("must have the class normal, which keys without a priority are in")
        return value


class Router(Section):
    address: Address = "unix:.run/router.sock"
    """Where RouterService listens."""
    state_file: Path = Path("state/router.db")
    """Where adapter declarations are kept."""
    policy: Literal["least_loaded", "round_robin"] = "least_loaded"
    heartbeat_s: PositiveSeconds = 1.0
    """How often hosts report."""
    host_timeout_s: PositiveSeconds = 2.5
    """A host that did not report for so long is out of the table."""
    adapter_timeout_s: PositiveSeconds = 300
    """How long all hosts together may take to load or unload an adapter."""
    metrics_port: Port | None = None
    """If set, Prometheus metrics are served there on loopback."""
    drain_timeout_s: PositiveSeconds = 2
    """How long a stop may take."""


class GrpcTls(Section):
    """Mutual TLS between services, on every listener that is no Unix socket. All three files, or none."""

    certificate: Path | None = None
    """This machine's certificate, PEM, the chain included; it is shown to callers and to those who are called."""
    key: Path | None = None
    """Its key, PEM."""
    ca: Path | None = None
    """The CA that every service's certificate must be of, PEM."""
    server_name: str | None = None
    """The name in every service's certificate; null: each has the host of the address that it is dialled by."""


class Grpc(Section):
    max_message_bytes: Annotated[int, Field(ge=2 * 1024 * 1024)] = 64 * 1024 * 1024
    """The largest gRPC message that is accepted. Session batches stay at or under 1 MiB."""
    keepalive_s: PositiveSeconds = 20
    """How often an idle connection is probed."""
    keepalive_timeout_s: PositiveSeconds = 10
    """How long the answer to such a probe may take before the connection counts as broken."""
    call_timeout_s: PositiveSeconds = 30
    """The deadline of unary calls between services that carry none of their own."""
    reconnect_min_s: PositiveSeconds = 0.05
    """The first pause before a broken connection is tried again; doubled after each failure."""
    reconnect_max_s: PositiveSeconds = 2.0
    """The longest such pause."""
    tls: GrpcTls = GrpcTls()


class Logs(Section):
    dir: Path = Path("logs")
    """The folder of the services' logs."""
    max_bytes: Annotated[int, Field(ge=0)] = 50 * 1024 * 1024
    """A service's log is rotated at this size; 0: never, something else (config/logrotate/) does."""
    backups: Annotated[int, Field(ge=0)] = 10
    """Rotated files that are kept."""


class Nginx(Section):
    """nginx in front of the edge, as scripts/start.sh runs it."""

    enabled: bool = False
    """Whether scripts/start.sh starts it; the same as its --nginx."""
    host: str = "0.0.0.0"
    """Where it listens."""
    port: Port = 8000
    """The port that clients connect to."""
    tls_certificate: Path | None = None
    """PEM, the chain included. With tls_key it makes `port` a TLS port; null: plain HTTP."""
    tls_key: Path | None = None
    """PEM."""
