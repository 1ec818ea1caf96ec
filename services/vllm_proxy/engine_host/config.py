"""The part of the settings that one engine host needs, its defaults resolved."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_proxy.common.settings import ConfigError, EngineHost, EngineKind, Grpc, LoadedSettings


@dataclass(frozen=True, slots=True)
class HostConfig:
    name: str
    engine: EngineKind
    address: str
    metrics_port: int | None
    auth_address: str
    router_address: str
    limits: EngineHost
    grpc: Grpc


def host_config(loaded: LoadedSettings, name: str) -> HostConfig:
    """Raises ConfigError if no host of this name is configured."""
    settings = loaded.settings
    hosts = settings.hosts()
    spec = hosts.get(name)
    if spec is None:
        known = ", ".join(hosts) or "none: no engine has a start command"
        raise ConfigError(f"--name {name}: no such engine host in {loaded.path} (configured: {known})")
    assert spec.address is not None
    return HostConfig(
        name=name,
        engine=spec.engine,
        address=spec.address,
        metrics_port=spec.metrics_port,
        auth_address=settings.auth.address,
        router_address=settings.router.address,
        limits=settings.engine_host,
        grpc=settings.grpc,
    )
