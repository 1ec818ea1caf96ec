"""Hosts, models and adapters as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.views import rfc3339


def host_view(host: pb.Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "engine": host.engine,
        "engine_version": host.engine_version,
        "address": host.address,
        "state": state_name(host.state),
        "detail": host.detail,
        "running": host.load.running,
        "waiting": host.load.waiting,
        "kv_usage": round(host.load.kv_usage, 4),
        "in_flight": host.load.in_flight,
        "models": [model.name for model in host.models if not model.base],
        "adapters": [model.name for model in host.models if model.base],
        "last_seen_at": rfc3339(host.last_seen_ms) if host.last_seen_ms else None,
    }


def model_view(served: pb.ServedModel) -> dict[str, Any]:
    return {"name": served.model.name, "hosts": sorted(served.hosts)}


def adapter_views(hosts: Iterable[pb.Host], declarations: Iterable[pb.AdapterDeclaration]) -> list[dict[str, Any]]:
    """Those that are loaded somewhere and those that are wanted, by name."""
    views: dict[str, dict[str, Any]] = {}
    for declared in declarations:
        spec = declared.adapter
        view = views.setdefault(spec.name, _adapter(spec.name, spec.base, spec.path, "declared"))
        view["declared_at"] = rfc3339(declared.declared_at_ms)
        view["hosts"] += declared.loaded_on
        view["errors"] += declared.errors
    for host in hosts:
        for model in host.models:
            if model.base:
                origin = pb.AdapterOrigin.Name(model.origin).removeprefix("ADAPTER_ORIGIN_").lower()
                view = views.setdefault(model.name, _adapter(model.name, model.base, model.path, origin))
                view["base"] = view["base"] or model.base
                view["digest"] = view["digest"] or model.digest or None
                if host.name not in view["hosts"]:
                    view["hosts"].append(host.name)
    for view in views.values():
        view["hosts"].sort()
        view["state"] = "failed" if view["errors"] else "loaded" if view["hosts"] else "waiting"
    return [views[name] for name in sorted(views)]


def state_name(state: pb.HostState) -> str:
    return pb.HostState.Name(state).removeprefix("HOST_STATE_").lower()


def _adapter(name: str, base: str, path: str, origin: str) -> dict[str, Any]:
    return {
        "name": name,
        "state": "",
        "base": base,
        "path": path,
        "origin": origin,
        "digest": None,
        "declared_at": None,
        "hosts": [],
        "errors": [],
    }
