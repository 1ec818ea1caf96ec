"""All services together, in a folder of their own, over the simulated engine."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.control import Control, Usage
from tests.support.http_client import Client
from tests.support.process import ServiceProcess
from tests.support.wait import eventually, wait_until

HEALTH_TIMEOUT_S = 2.0
STOP_DEADLINE_S = 5.0
#: Logged by the simulator with the port of its HTTP face.
SIM_HTTP_EVENT = "simulator's HTTP face"
LISTEN_BACKLOG = 2048


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


class Cluster:
    """auth, router, edge workers and engine hosts; a context manager that starts and stops them.

    `config` is merged over a base that suits tests. The edge workers share one listening socket that the cluster
    holds, as under the supervisor: a worker can be killed and started again while the port stays.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        hosts: Sequence[str] = ("sim",),
        workers: int = 1,
        keys: Sequence[ApiKey] = DEFAULT_KEYS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to that of every service."""
        # A short path: a Unix socket's has 107 bytes at most.
        self.root = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG)
        self._listener.set_inheritable(True)
        self.port: int = self._listener.getsockname()[1]
        base: dict[str, Any] = {
            "fastapi_host": "127.0.0.1",
            "fastapi_port": self.port,
            "fastapi_workers": workers,
            "log_level": "INFO",
            "engine_hosts": {name: {"engine": "sim"} for name in hosts},
            "sim": {"step_ms": 5, "http_port": 0},
            "router": {"heartbeat_s": 0.5},
        }
        self._environment = dict(environment or {})
        self.config = _merge(base, config or {})
        self.write_config()
        self.write_keys(keys)
        self.auth = self._grpc_service("auth", "vllm_proxy.auth", self.address("auth"))
        self.router = self._grpc_service("router", "vllm_proxy.router", self.address("router"))
        self.hosts = {
            name: self._grpc_service(
                f"engine-{name}", "vllm_proxy.engine_host", self.host_address(name), "--name", name
            )
            for name in hosts
        }
        self.control = Control(self.address("auth"), self.address("router"))
        self.edges = [self._edge(number) for number in range(workers)]

    @property
    def edge(self) -> ServiceProcess:
        return self.edges[0]

    @property
    def host(self) -> ServiceProcess:
        """The only engine host."""
        (host,) = self.hosts.values()
        return host

    @property
    def services(self) -> list[ServiceProcess]:
        return [self.auth, self.router, *self.hosts.values(), *self.edges]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config_path(self) -> Path:
        return self.root / "config" / "config.yaml"

    def client(self, key: ApiKey = ALICE, model: str = "sim") -> Client:
        return Client(self.port, key.key, model)

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

    def address(self, service: str) -> str:
        """The gRPC target of auth or router, absolute."""
        return self._absolute(self.config.get(service, {}).get("address", f"unix:.run/{service}.sock"))

    def host_address(self, name: str) -> str:
        return self._absolute(self.config["engine_hosts"][name].get("address", f"unix:.run/engine-{name}.sock"))

    def journal(self, host: str | None = None) -> list[dict[str, Any]]:
        """What a simulated engine produced since it started, one row a request, ended ones only."""
        process = self.hosts[host] if host else self.host
        ports = [line["port"] for line in process.log_lines() if line.get("event") == SIM_HTTP_EVENT]
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}/sim/journal", timeout=5) as answer:
            rows: list[dict[str, Any]] = json.load(answer)
            return rows

    def write_config(self, changes: Mapping[str, Any] | None = None) -> None:
        """Writes config.yaml, at once as a whole; `changes` are merged in and kept."""
        self.config = _merge(self.config, changes or {})
        self._replace(self.config_path, yaml.safe_dump(self.config))

    def write_keys(self, keys: Sequence[ApiKey]) -> None:
        rows = [{"key": k.key, "user": k.user, "quota": k.quota, "enabled": k.enabled} for k in keys]
        self._replace(self.root / "config" / "api_keys.json", json.dumps({"keys": rows}))

    def start(self) -> Self:
        """Starts everything at once and waits until the edge says that it can serve."""
        for service in self.services:
            service.start()
        with ThreadPoolExecutor(len(self.services)) as pool:
            list(pool.map(lambda service: service.wait_healthy(), self.services))
        self.wait_serving(len(self.hosts))
        return self

    def wait_serving(self, hosts: int, deadline_s: float = 15.0) -> None:
        """Waits until the router counts so many engine hosts as serving and the edge is healthy."""
        wait_until(
            lambda: len(self.control.serving_hosts()) == hosts and self.edge.is_healthy,
            f"{hosts} engine hosts serving",
            deadline_s,
        )

    def stop(self) -> None:
        """Ends everything, the hard way if need be, and removes the folder."""
        # Edges first: they still have something to settle.
        for service in reversed(self.services):
            service.end(STOP_DEADLINE_S)
        self.control.close()
        self._listener.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException as e:
            e.add_note(self.logs())
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def logs(self, lines: int = 40) -> str:
        return "\n".join(f"--- {service.name}\n{service.log_tail(lines)}" for service in self.services)

    def _grpc_service(self, name: str, module: str, target: str, *arguments: str) -> ServiceProcess:
        return ServiceProcess(
            name,
            ServiceProcess.python_module(module, "--config", str(self.config_path), *arguments),
            cwd=self.root,
            log_path=self.root / "logs" / f"{name}.log",
            is_healthy=lambda: _grpc_serving(target),
            environment=self._environment,
        )

    def _edge(self, number: int) -> ServiceProcess:
        arguments = ["--config", str(self.config_path), "--listen-fd", str(self._listener.fileno())]
        metrics = self.root / ".run" / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        return ServiceProcess(
            "edge" if number == 0 else f"edge-{number}",
            ServiceProcess.python_module("vllm_proxy.edge", *arguments),
            cwd=self.root,
            log_path=self.root / "logs" / ("fastapi.log" if number == 0 else f"fastapi-{number}.log"),
            is_healthy=lambda: _http_serving(self.url),
            environment={**self._environment, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            pass_fds=[self._listener.fileno()],
        )

    def _absolute(self, address: str) -> str:
        path = address.removeprefix("unix:")
        return address if path == address or path.startswith("/") else f"unix:{self.root / path}"

    def _replace(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o600)
        fresh.replace(path)


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago, for servers that cannot be handed a socket."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _grpc_serving(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _http_serving(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
