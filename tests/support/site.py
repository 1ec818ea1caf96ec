"""One installation's folder: its settings, keys and addresses, and how tests ask it, whoever runs its processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from tests.support.control import Control, Usage
from tests.support.http_client import Client
from tests.support.process import log_lines
from tests.support.wait import eventually

HEALTH_TIMEOUT_S = 2.0
#: Logged by the simulator with the port of its HTTP face.
SIM_HTTP_EVENT = "simulator's HTTP face"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of the declared keys file."""

    key: str
    user: str
    quota: int | None = None
    enabled: bool = True


ALICE = ApiKey("sk-test-alice-0123456789abcdef", "alice")
BOB = ApiKey("sk-test-bob-0123456789abcdef", "bob")
ADMIN = ApiKey("sk-test-admin-0123456789abcdef", "admin")
DISABLED = ApiKey("sk-test-disabled-0123456789abcdef", "dora", enabled=False)
DEFAULT_KEYS = (ALICE, BOB, ADMIN, DISABLED)


class Site:
    """Simulated engine hosts called `hosts`, an edge at `port`; `config` is merged over a base that suits tests."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        port: int,
        hosts: Sequence[str] = ("sim",),
        workers: int = 1,
        keys: Sequence[ApiKey] = DEFAULT_KEYS,
    ) -> None:
        # A short path: a Unix socket's has 107 bytes at most.
        self.root = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
        self.port = port
        base: dict[str, Any] = {
            "fastapi_host": "127.0.0.1",
            "fastapi_port": port,
            "fastapi_workers": workers,
            "engine_hosts": {name: {"engine": "sim"} for name in hosts},
            "sim": {"step_ms": 5, "http_port": 0},
            "router": {"heartbeat_s": 0.5},
            # Clients of a test that ends use nothing again.
            "edge": {"drain_idle_s": 0},
        }
        self.config = _merge(base, config or {})
        self.write_config()
        self.write_keys(keys)
        self.control = Control(self.address("auth"), self.address("router"))

    def remove(self) -> None:
        self.control.close()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config_path(self) -> Path:
        return self.root / "config" / "config.yaml"

    def address(self, service: str) -> str:
        """The gRPC target of auth or router, absolute."""
        return self._absolute(self.config.get(service, {}).get("address", f"unix:.run/{service}.sock"))

    def host_address(self, name: str) -> str:
        return self._absolute(self.config["engine_hosts"][name].get("address", f"unix:.run/engine-{name}.sock"))

    def write_config(self, changes: Mapping[str, Any] | None = None) -> None:
        """Writes config.yaml, at once as a whole; `changes` are merged in and kept."""
        self.config = _merge(self.config, changes or {})
        _replace(self.config_path, yaml.safe_dump(self.config))

    def write_keys(self, keys: Sequence[ApiKey], rules: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`rules` are more fields of a key's row, by user."""
        rows = [
            {"key": k.key, "user": k.user, "quota": k.quota, "enabled": k.enabled, **(rules or {}).get(k.user, {})}
            for k in keys
        ]
        _replace(self.root / "config" / "api_keys.json", json.dumps({"keys": rows}))

    def client(self, key: ApiKey = ALICE, model: str = "sim") -> Client:
        return Client(self.port, key.key, model)

    def is_serving(self) -> bool:
        """Whether some edge worker says that it can serve."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=HEALTH_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    async def settled_usage(self, user: str = ALICE.user, deadline_s: float = 10.0) -> Usage:
        """What the book says of a user once nothing of theirs runs or is reserved."""

        async def settled() -> Usage | None:
            try:
                usage = await asyncio.to_thread(self.control.usage, user)
            except grpc.RpcError:  # auth is being restarted
                return None
            return usage if usage.is_settled else None

        usage: Usage = await eventually(settled, f"{user}'s leases settled", deadline_s)
        return usage

    def journal(self, host: str | None = None) -> list[dict[str, Any]]:
        """What a simulated engine (the only one) produced since it started, one row for each request that ended."""
        if host is None:
            (host,) = self.config["engine_hosts"]
        lines = log_lines(self.root / "logs" / f"engine-{host}.log")
        ports = [line["port"] for line in lines if line.get("event") == SIM_HTTP_EVENT]
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}/sim/journal", timeout=5) as answer:
            rows: list[dict[str, Any]] = json.load(answer)
            return rows

    def _absolute(self, address: str) -> str:
        path = address.removeprefix("unix:")
        return address if path == address or path.startswith("/") else f"unix:{self.root / path}"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o600)
    fresh.replace(path)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
