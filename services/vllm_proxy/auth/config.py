"""What the auth service takes from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.limits import Limits
from vllm_proxy.common.settings import ConfigError, Settings

_SQLITE = "sqlite:"


@dataclass(frozen=True, slots=True)
class AuthConfig:
    address: str
    api_keys_file: Path
    store_path: Path
    full_sync: bool
    limits: Limits
    default_response_tokens: int
    lease_ttl_ns: int
    settle_grace_ns: int
    #: What a cached prompt token is charged, in millionths of a token.
    cached_weight_ppm: int
    ledger_retention_days: int
    metrics_port: int | None
    drain_timeout_s: float

    @classmethod
    def from_settings(cls, settings: Settings) -> AuthConfig:
        """Raises ConfigError for a store that this version does not know."""
        auth = settings.auth
        path = auth.store.removeprefix(_SQLITE)
        if not auth.store.startswith(_SQLITE) or not path:
            raise ConfigError(f"auth.store: must be sqlite:PATH, not {auth.store.partition('@')[0]!r}")
        return cls(
            address=auth.address,
            api_keys_file=settings.api_keys_file,
            store_path=Path(path),
            full_sync=auth.synchronous == "full",
            limits=Limits.from_settings(settings.rate_limit),
            default_response_tokens=auth.default_response_tokens,
            lease_ttl_ns=round(auth.lease_ttl_s * NS_PER_SECOND),
            settle_grace_ns=round(auth.settle_grace_s * NS_PER_SECOND),
            cached_weight_ppm=round(auth.cached_token_weight * 1_000_000),
            ledger_retention_days=auth.ledger_retention_days,
            metrics_port=auth.metrics_port,
            drain_timeout_s=auth.drain_timeout_s,
        )
