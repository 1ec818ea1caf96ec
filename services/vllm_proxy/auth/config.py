"""What the auth service takes from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.policy import Policy
from vllm_proxy.common.settings import ConfigError, Settings

_SQLITE = "sqlite:"


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """What matters if the store is a Redis."""

    prefix: str = "vllm-proxy"
    timeout_s: float = 2.0
    leadership_ttl_s: float = 3.0
    fail_open: bool = False
    #: Records that wait for Redis in memory at most while it is away.
    outage_buffer: int = 500_000


@dataclass(frozen=True, slots=True)
class AuthConfig:
    address: str
    api_keys_file: Path
    store_path: Path
    full_sync: bool
    policy: Policy
    default_response_tokens: int
    #: Of keys that do not say otherwise; None: unlimited.
    max_response_tokens: int | None
    priority_classes: Mapping[str, int]
    #: How long an admission waits for room instead of being refused, unless the key says otherwise.
    admission_wait_ms: int
    #: More than this no key may wait: the edge would give up first.
    max_admission_wait_ms: int
    admission_queue_size: int
    lease_ttl_ns: int
    settle_grace_ns: int
    #: What a cached prompt token is charged, in millionths of a token.
    cached_weight_ppm: int
    ledger_retention_days: int
    audit_retention_days: int
    rotation_overlap_ms: int
    metrics_port: int | None
    drain_timeout_s: float
    #: The URL of a Redis; empty: SQLite in `store_path`.
    redis_url: str = ""
    redis: RedisConfig = RedisConfig()

    @classmethod
    def from_settings(cls, settings: Settings) -> AuthConfig:
        """Raises ConfigError if it is not said where this replica listens."""
        auth = settings.auth
        address = auth.listen_address or auth.address
        if "," in address:
            raise ConfigError("auth.listen_address: say which of auth.address this replica listens on")
        is_file = auth.store.startswith(_SQLITE)
        return cls(
            address=address,
            api_keys_file=settings.api_keys_file,
            store_path=Path(auth.store.removeprefix(_SQLITE)) if is_file else Path(),
            redis_url="" if is_file else auth.store,
            redis=RedisConfig(
                prefix=auth.redis_prefix,
                timeout_s=auth.redis_timeout_s,
                leadership_ttl_s=auth.leadership_ttl_s,
                fail_open=auth.store_outage == "fail_open",
                outage_buffer=auth.store_outage_buffer,
            ),
            full_sync=auth.synchronous == "full",
            policy=Policy.from_settings(settings),
            default_response_tokens=auth.default_response_tokens,
            max_response_tokens=auth.max_response_tokens,
            priority_classes=auth.priority_classes,
            admission_wait_ms=auth.admission_wait_ms,
            max_admission_wait_ms=settings.max_admission_wait_ms,
            admission_queue_size=auth.admission_queue_size,
            lease_ttl_ns=round(auth.lease_ttl_s * NS_PER_SECOND),
            settle_grace_ns=round(auth.settle_grace_s * NS_PER_SECOND),
            cached_weight_ppm=round(auth.cached_token_weight * 1_000_000),
            ledger_retention_days=auth.ledger_retention_days,
            audit_retention_days=auth.audit_retention_days,
            rotation_overlap_ms=round(auth.rotation_overlap_s * 1000),
            metrics_port=auth.metrics_port,
            drain_timeout_s=auth.drain_timeout_s,
        )
