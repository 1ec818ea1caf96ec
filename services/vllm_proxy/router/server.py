"""The router, put together."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common import maintenance
from vllm_proxy.common.lifecycle import StopSignal, spawn
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.metrics import process_registry, serve_metrics
from vllm_proxy.common.reload import Commit, Outcome, Reloader
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import ConfigError, LoadedSettings
from vllm_proxy.router.adapters import Adapters
from vllm_proxy.router.config import RouterConfig
from vllm_proxy.router.convergence import Convergence
from vllm_proxy.router.declaration_store import DeclarationStore
from vllm_proxy.router.declarations import Declarations
from vllm_proxy.router.host_snapshots import HostSnapshots
from vllm_proxy.router.hosts import HostBook
from vllm_proxy.router.metrics import RouterMetrics
from vllm_proxy.router.named_locks import NamedLocks
from vllm_proxy.router.registrar import Registrar
from vllm_proxy.router.servicer import SERVICE_NAME, RouterServicer
from vllm_proxy.router.watch import TableFeed

log = logging.getLogger(__name__)


async def serve(loaded: LoadedSettings, stop: StopSignal) -> int:
    """Runs the router until `stop`."""
    config = RouterConfig.of(loaded.settings)
    registry = process_registry()
    metrics = RouterMetrics(registry)
    async with AsyncExitStack() as stack:
        # A write at the end (a host that left while we stop) still finds the store open: it is closed last.
        store = DeclarationStore(config.state_file)
        stack.push_async_callback(store.close)
        try:
            state = await store.open()
        except (sqlite3.Error, OSError) as e:
            raise ConfigError(f"router.state_file: {config.state_file} cannot be used: {e}") from None

        writes: set[asyncio.Task[Any]] = set()
        stack.push_async_callback(_finish, writes)

        def later(write: Awaitable[None]) -> None:
            spawn(writes, _wait(write), "store")

        locks = NamedLocks()
        declarations = Declarations(store, state, later)
        metrics.watch_declarations(declarations.__len__)
        hosts = HostBook(config.host_timeout_s, config.settle_s)
        convergence = Convergence(hosts, declarations, locks, config.adapter_timeout_s, metrics.replayed)
        stack.push_async_callback(convergence.close)
        adapters = Adapters(hosts, declarations, convergence, locks, config.adapter_timeout_s)
        stack.push_async_callback(adapters.close)
        feed = TableFeed(
            config.policy, config.model_backend_mapping, config.heartbeat_s, first_version=time.time_ns() // 1000
        )
        picture = HostSnapshots(hosts, store)
        registrar = Registrar(hosts, declarations, locks)

        hosts.restore(state.hosts)
        hosts.on_load.append(feed.load_changed)
        hosts.on_change += [
            lambda _: feed.changed(),
            lambda _: metrics.show_hosts(hosts.everyone()),
            picture.note,
            convergence.look_at,
        ]
        feed.show(hosts)

        rpc = RpcServer(config.address, loaded.settings.grpc, [SERVICE_NAME, maintenance.SERVICE_NAME])
        router_pb2_grpc.add_RouterServiceServicer_to_server(
            RouterServicer(hosts, registrar, feed, adapters, metrics, config.heartbeat_s), rpc.server
        )
        reloader = Reloader("router", loaded, lambda new: _prepare(new, feed))
        stack.push_async_callback(reloader.close)
        logs = LogFolder(loaded.settings.logs.dir, ["router"])
        maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(
            maintenance.MaintenanceServicer(reloader, logs, registry), rpc.server
        )

        address = await rpc.listen()
        stack.push_async_callback(rpc.stop, config.drain_timeout_s)
        serve_metrics(config.metrics_port, registry)

        stack.callback(registrar.close)

        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(hosts.run()),
                group.create_task(picture.run()),
                group.create_task(reloader.run(stop.hangup)),
            ]
            await rpc.set_serving(True)
            log.info(
                "serving",
                extra={
                    "address": address,
                    "assumed_hosts": len(state.hosts),
                    "declarations": len(state.declarations),
                },
            )
            await stop.wait()
            await rpc.set_serving(False)
            # Before the hosts' streams end: neither the edges nor the next router may see the hosts go with us.
            feed.close()
            for task in running:
                task.cancel()
    return 0


def _prepare(loaded: LoadedSettings, feed: TableFeed) -> Commit:
    config = RouterConfig.of(loaded.settings)

    async def commit(outcome: Outcome) -> None:
        feed.configure(config.policy, config.model_backend_mapping)

    return commit


async def _wait(awaitable: Awaitable[None]) -> None:
    await awaitable


async def _finish(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
