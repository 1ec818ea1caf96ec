"""All services together as processes of their own, over simulated engines or the real vLLM."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.process import ENGINE_PYTHON, START_DEADLINE_S, ServiceProcess
from tests.support.site import ADMIN, ALICE, BOB, DEFAULT_KEYS, DISABLED, HEALTH_TIMEOUT_S, ApiKey, Site
from tests.support.wait import wait_until

from vllm_proxy.common.rpc.address import dial_target

__all__ = ["ADMIN", "ALICE", "BOB", "DEFAULT_KEYS", "DISABLED", "ApiKey", "Cluster", "free_port"]

STOP_DEADLINE_S = 5.0
LISTEN_BACKLOG = 2048
ENGINE_START_DEADLINE_S = 240.0


class Cluster(Site):
    """auth, router, edge workers and engine hosts; a context manager that starts and stops them.

    The workers of an edge share one listening socket that the cluster holds, as under the supervisor: a worker can be
    killed and started again while the port stays. Several edges have a port each, in `ports`.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        hosts: Sequence[str] = ("sim",),
        workers: int = 1,
        keys: Sequence[ApiKey] = DEFAULT_KEYS,
        environment: Mapping[str, str] | None = None,
        auths: int = 1,
        edges: int = 1,
    ) -> None:
        """`environment` is added to that of every service. Several auth replicas need a store that they share; each of
        them counts as healthy while one leads."""
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG) for _ in range(edges)]
        for listener in self._listeners:
            listener.set_inheritable(True)
        self.ports = [listener.getsockname()[1] for listener in self._listeners]
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(auths)] if auths > 1 else []
        if addresses:
            config = {**(config or {}), "auth": {**(config or {}).get("auth", {}), "address": ",".join(addresses)}}
        super().__init__(config, port=self.ports[0], hosts=hosts, workers=workers, keys=keys)
        self._environment = dict(environment or {})
        auth_target = dial_target(self.address("auth"))
        self.auths = [
            self._grpc_service(f"auth-{number}", "vllm_proxy.auth", auth_target, "--set", f"auth.listen_address={mine}")
            for number, mine in enumerate(addresses)
        ] or [self._grpc_service("auth", "vllm_proxy.auth", auth_target)]
        self.router = self._grpc_service("router", "vllm_proxy.router", self.address("router"))
        self.hosts = {name: self._host(name) for name in hosts}
        shared = [listener for listener in self._listeners for _ in range(workers)]
        self.edges = [self._edge(number, listener) for number, listener in enumerate(shared)]

    @property
    def auth(self) -> ServiceProcess:
        """The first replica."""
        return self.auths[0]

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
        return [*self.auths, self.router, *self.hosts.values(), *self.edges]

    def start(self) -> Self:
        """Starts everything at once and waits until the edge says that it can serve."""
        for service in self.services:
            service.start()
        # Engine hosts first: until one serves, the edge is not healthy.
        for services in (self.hosts.values(), (*self.auths, self.router, *self.edges)):
            with ThreadPoolExecutor(len(services)) as pool:
                list(pool.map(lambda service: service.wait_healthy(), services))
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
        for services in (self.edges, [*self.hosts.values(), self.router, *self.auths]):
            with ThreadPoolExecutor(len(services)) as pool:
                list(pool.map(lambda service: service.end(STOP_DEADLINE_S), services))
        for listener in self._listeners:
            listener.close()
        self.remove()

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

    def _host(self, name: str) -> ServiceProcess:
        arguments = ("vllm_proxy.engine_host", "--config", str(self.config_path), "--name", name)
        spec = self.config["engine_hosts"][name]
        mode = spec.get("launch_mode") or self.config.get(spec["engine"], {}).get("launch_mode", "python_api")
        real = spec["engine"] != "sim" and mode == "python_api"
        target = self.host_address(name)
        return ServiceProcess(
            f"engine-{name}",
            [str(ENGINE_PYTHON), "-m", *arguments] if real else ServiceProcess.python_module(*arguments),
            cwd=self.root,
            log_path=self.root / "logs" / f"engine-{name}.log",
            is_healthy=lambda: _grpc_serving(target),
            # A real engine runs as it is installed, entry points included.
            environment={**self._environment, "PYTHONPATH": ""} if real else self._environment,
            start_deadline_s=ENGINE_START_DEADLINE_S if real else START_DEADLINE_S,
        )

    def _grpc_service(self, name: str, module: str, target: str, *arguments: str) -> ServiceProcess:
        return ServiceProcess(
            name,
            ServiceProcess.python_module(module, "--config", str(self.config_path), *arguments),
            cwd=self.root,
            log_path=self.root / "logs" / f"{name}.log",
            is_healthy=lambda: _grpc_serving(target),
            environment=self._environment,
        )

    def _edge(self, number: int, listener: socket.socket) -> ServiceProcess:
        arguments = ["--config", str(self.config_path), "--listen-fd", str(listener.fileno())]
        metrics = self.root / ".run" / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        return ServiceProcess(
            "edge" if number == 0 else f"edge-{number}",
            ServiceProcess.python_module("vllm_proxy.edge", *arguments),
            cwd=self.root,
            log_path=self.root / "logs" / ("fastapi.log" if number == 0 else f"fastapi-{number}.log"),
            is_healthy=self.is_serving,
            environment={**self._environment, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            pass_fds=[listener.fileno()],
        )


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
