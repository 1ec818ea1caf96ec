"""The router's part of the settings, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_proxy.common.settings import ConfigError, Settings


@dataclass(frozen=True, slots=True)
class RouterConfig:
    address: str
    state_file: Path
    heartbeat_s: float
    host_timeout_s: float
    #: How long hosts of an earlier router are assumed to live: within it they have reconnected.
    settle_s: float
    adapter_timeout_s: float
    drain_timeout_s: float
    metrics_port: int | None
    policy: str
    model_backend_mapping: dict[str, str]

    @classmethod
    def of(cls, settings: Settings) -> RouterConfig:
        """Raises ConfigError if hosts would time out between two heartbeats."""
        router = settings.router
        if router.host_timeout_s <= router.heartbeat_s:
            raise ConfigError(
                f"router.host_timeout_s: {router.host_timeout_s:g} must be more than router.heartbeat_s, "
                f"{router.heartbeat_s:g}"
            )
        return cls(
            address=router.address,
            state_file=router.state_file,
            heartbeat_s=router.heartbeat_s,
            host_timeout_s=router.host_timeout_s,
            settle_s=settings.grpc.reconnect_max_s + router.heartbeat_s,
            adapter_timeout_s=router.adapter_timeout_s,
            drain_timeout_s=router.drain_timeout_s,
            metrics_port=router.metrics_port,
            policy=router.policy,
            model_backend_mapping=dict(settings.model_backend_mapping),
        )
