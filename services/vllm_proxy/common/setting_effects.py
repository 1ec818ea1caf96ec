"""Who reads which setting, and whether a change of it counts at once or waits for a restart.

A reader is a service (`auth`, `router`, `edge`, `engine` for every engine host), `engine:<kind>` for the hosts of one
engine, `engine:http` for those whose engine is another process, or `nginx`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from vllm_proxy.common.settings import LoadedSettings

#: A key and those of the sections that it lies in, the outermost first. Names may hold dots.
Path: TypeAlias = tuple[str, ...]

_ALL = ("edge", "auth", "router", "engine")


class Effect(NamedTuple):
    """Who puts a changed setting in force while it runs, and who has to be restarted for it. Nobody: it counts at the
    next start of whatever it is about."""

    at_once: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


#: By dotted key or the beginning of one; the longest that fits counts.
_EFFECTS: dict[str, Effect] = {
    "vllm_host": Effect(restart=("engine:vllm",)),
    "vllm_port": Effect(restart=("engine:vllm",)),
    "sglang_host": Effect(restart=("engine:sglang",)),
    "sglang_port": Effect(restart=("engine:sglang",)),
    "fastapi_host": Effect(restart=("edge", "nginx")),
    "fastapi_port": Effect(restart=("edge", "nginx")),
    "fastapi_workers": Effect(restart=("edge",)),
    "api_keys_file": Effect(restart=("auth",)),
    "rate_limit": Effect(at_once=("auth",)),
    "user_rate_limit": Effect(at_once=("auth",)),
    "users": Effect(at_once=("auth",)),
    "global_rate_limit": Effect(at_once=("auth",)),
    "log_level": Effect(at_once=_ALL),
    "log_levels": Effect(at_once=_ALL),
    "model_backend_mapping": Effect(at_once=("router",)),
    "model_aliases": Effect(at_once=("edge",)),
    "default_model": Effect(at_once=("edge",)),
    "vllm": Effect(restart=("engine:vllm",)),
    "vllm.auto_start": Effect(),
    "vllm.lora.preload": Effect(at_once=("engine:vllm",)),
    "vllm.lora.allowed_roots": Effect(at_once=("engine:vllm",)),
    "sglang": Effect(restart=("engine:sglang",)),
    "sglang.auto_start": Effect(),
    "sglang.lora.preload": Effect(at_once=("engine:sglang",)),
    "sglang.lora.allowed_roots": Effect(at_once=("engine:sglang",)),
    "sim": Effect(restart=("engine:sim",)),
    "edge": Effect(at_once=("edge",)),
    "edge.admission_timeout_s": Effect(at_once=("edge", "auth")),
    "edge.cors_origins": Effect(restart=("edge",)),
    "edge.max_buffered_bytes": Effect(restart=("edge",)),
    "auth": Effect(restart=("auth",)),
    "auth.address": Effect(restart=("auth", "edge", "engine")),
    "auth.default_response_tokens": Effect(at_once=("auth",)),
    "auth.max_response_tokens": Effect(at_once=("auth",)),
    "auth.priority_classes": Effect(at_once=("auth",)),
    "auth.admission_wait_ms": Effect(at_once=("auth",)),
    "router": Effect(restart=("router",)),
    "router.address": Effect(restart=("router", "edge", "engine")),
    "router.adapter_timeout_s": Effect(restart=("router", "edge")),
    "router.policy": Effect(at_once=("router",)),
    "engine_host": Effect(restart=("engine",)),
    "engine_host.adapter_load_timeout_s": Effect(at_once=("engine",)),
    "engine_http": Effect(restart=("engine:http",)),
    "engine_process": Effect(restart=("engine:http",)),
    "grpc": Effect(restart=_ALL),
    "logs": Effect(restart=_ALL),
    "nginx": Effect(restart=("nginx",)),
    "tracing": Effect(restart=_ALL),
    "pid_dir": Effect(restart=_ALL),
    "run_dir": Effect(restart=_ALL),
}
#: What only one engine host reads stands below `engine_hosts.<name>`.
_HOSTS = "engine_hosts"
#: Who has no service to say that it must be restarted, and who says it instead.
_SPOKEN_FOR = {"edge": ("nginx",)}


def effect_of(path: Path) -> Effect:
    """Raises KeyError for a setting that stands nowhere here. Those of one engine host need its restart."""
    if path[0] == _HOSTS:
        return Effect(restart=("engine",))
    for length in range(len(path), 0, -1):
        if (effect := _EFFECTS.get(".".join(path[:length]))) is not None:
            return effect
    raise KeyError(".".join(path))


def roles_of(service: str, loaded: LoadedSettings) -> frozenset[str]:
    """The readers that a service (`engine-<name>` for a host) is."""
    if not service.startswith("engine-"):
        return frozenset({service})
    name = service.removeprefix("engine-")
    kind = loaded.settings.hosts(loaded.root)[name].engine
    section = loaded.settings.for_host(name).section(kind)
    speaks_http = section is not None and section.launch_mode != "python_api"
    return frozenset({"engine", f"engine:{kind}", *(("engine:http",) if speaks_http else ())})


def applies(path: Path, service: str, roles: frozenset[str]) -> bool:
    """Whether a service puts a changed setting in force while it runs."""
    if path[0] == "log_levels":
        return path[1] == service
    return not roles.isdisjoint(effect_of(path).at_once)


def waiting(path: Path, service: str, roles: frozenset[str]) -> Iterator[str]:
    """What has to be restarted, or started, for a changed setting, as far as this service is to say so."""
    if path[0] == _HOSTS:
        host = f"engine-{path[1]}"
        # A host that is new has no process that could speak.
        if service in (host, "router"):
            yield host
        return
    restart = effect_of(path).restart
    if not roles.isdisjoint(restart):
        yield service
    yield from (other for other in _SPOKEN_FOR.get(service, ()) if other in restart)


def values_of(loaded: LoadedSettings, service: str) -> dict[Path, Any]:
    """Every value by its path. For an engine host the text of its start command stands for the file with it."""
    values = dict(flattened(loaded.settings.model_dump(mode="json")))
    name = service.removeprefix("engine-")
    if name != service and (spec := loaded.settings.hosts(loaded.root).get(name)) is not None:
        section = loaded.settings.for_host(name).section(spec.engine)
        if section is not None:
            values[spec.engine, "start_cmd_file"] = section.command(loaded.root)
    return values


def flattened(settings: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value by its path."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, (*above, name))
        else:
            yield (*above, name), value
