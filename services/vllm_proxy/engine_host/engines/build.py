"""Engine kinds and how each is built. An engine's packages are imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from vllm_proxy.common.settings import ConfigError, EngineKind, Settings
from vllm_proxy.engine_host.engines.base import Engine, ResolveAdapter


def _vllm(settings: Settings, resolve: ResolveAdapter) -> Engine:
    from vllm_proxy.engine_host.engines.vllm import VllmEngine

    return VllmEngine(settings, resolve)


def _sglang(settings: Settings, resolve: ResolveAdapter) -> Engine:
    from vllm_proxy.engine_host.engines.sglang import SglangEngine

    return SglangEngine(settings, resolve)


def _http(kind: EngineKind, settings: Settings, resolve: ResolveAdapter) -> Engine:
    from vllm_proxy.engine_host.engines.openai_http import HttpEngine

    return HttpEngine(kind, settings, resolve)


def _sim(settings: Settings, resolve: ResolveAdapter) -> Engine:
    from vllm_proxy.engine_host.engines.sim import SimEngine

    return SimEngine(settings.sim, resolve)


_ENGINES: dict[EngineKind, Callable[[Settings, ResolveAdapter], Engine]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "sim": _sim,
}


def build_engine(kind: EngineKind, settings: Settings, resolve: ResolveAdapter) -> Engine:
    """`settings` are those of the engine's host. Raises ConfigError for an engine that this version cannot host."""
    section = settings.section(kind)
    if section is not None and section.launch_mode != "python_api":
        return _http(kind, settings, resolve)
    build = _ENGINES.get(kind)
    if build is None:
        raise ConfigError(f"engine {kind}: not supported by this version (it can be: {', '.join(_ENGINES)})")
    return build(settings, resolve)
