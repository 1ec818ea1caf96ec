"""Composition root of an edge worker: build, wire, listen, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

import grpc.aio
import uvicorn

from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.ids import new_incarnation
from vllm_proxy.common.lifecycle import StopSignal, cancel_all, spawn
from vllm_proxy.common.maintenance import LogFolder
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import ConfigError, LoadedSettings
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.config import EdgeConfig
from vllm_proxy.edge.cors import Cors
from vllm_proxy.edge.exchange import ExchangeContext
from vllm_proxy.edge.fastapi_app import build_api, routes_of
from vllm_proxy.edge.fleet_logs import FleetLogs
from vllm_proxy.edge.front_door import EdgeApp
from vllm_proxy.edge.hosts import Hosts
from vllm_proxy.edge.http_protocol import with_limits
from vllm_proxy.edge.inference import InferenceEndpoint
from vllm_proxy.edge.metrics import EdgeMetrics, leave_multiprocess, prepare_multiprocess
from vllm_proxy.edge.response_writer import AsgiApp
from vllm_proxy.edge.routes.admin import admin_router
from vllm_proxy.edge.routes.audit import audit_router
from vllm_proxy.edge.routes.health import health_router
from vllm_proxy.edge.routes.keys import keys_router
from vllm_proxy.edge.routes.metrics import metrics_router
from vllm_proxy.edge.routes.models import models_router
from vllm_proxy.edge.routes.own_usage import own_usage_router
from vllm_proxy.edge.routes.usage import usage_router
from vllm_proxy.edge.table_watch import TableWatch

log = logging.getLogger(__name__)

LISTEN_BACKLOG = 2048
SWEEP_INTERVAL_S = 1.0
#: After the drain: for the ends of aborted requests and for their settlements.
SETTLE_TIMEOUT_S = 5.0


class EdgeServer(uvicorn.Server):
    """uvicorn without its signal handlers: StopSignal owns them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(loaded: LoadedSettings, stop: StopSignal, listen_fd: int | None = None) -> int:
    """Runs a worker on an inherited listening socket, or on one of its own."""
    config = EdgeConfig.from_settings(loaded)
    edge_id = new_incarnation("edge")
    prepare_multiprocess()
    listener = _listener(config, listen_fd)
    tasks: set[asyncio.Task[None]] = set()
    async with AsyncExitStack() as stack:
        stack.callback(leave_multiprocess)
        auth_channel = open_channel(config.auth_address, config.grpc)
        stack.push_async_callback(auth_channel.close)
        router_channel = open_channel(config.router_address, config.grpc)
        stack.push_async_callback(router_channel.close)
        stack.push_async_callback(cancel_all, tasks)

        hosts = Hosts(edge_id, config.grpc)
        stack.push_async_callback(hosts.close)
        auth = AuthClient(auth_channel, edge_id, config.grpc, config.admission_timeout_s)
        watch = TableWatch(router_channel, edge_id, config.grpc, hosts.apply)
        context = ExchangeContext(
            config=config,
            hosts=hosts,
            auth=auth,
            metrics=EdgeMetrics(),
            spawn=lambda coroutine, name: spawn(tasks, coroutine, name),
            clock=time.monotonic,
        )
        stack.callback(context.metrics.flush)
        draining = False

        def channels() -> Mapping[str, grpc.aio.Channel]:
            known = {f"engine-{name}": hosts.channel_to(name) for name in hosts.table.hosts}
            return {"auth": auth_channel, "router": router_channel} | {k: c for k, c in known.items() if c is not None}

        auth_service = auth_pb2_grpc.AuthServiceStub(auth_channel)
        call_timeout_s = config.grpc.call_timeout_s
        routers = (
            health_router(hosts, lambda: {"auth": auth.connected, "router": watch.connected}, lambda: draining),
            metrics_router(context.metrics, channels, config.grpc.call_timeout_s),
            models_router(hosts.table, auth),
            admin_router(
                auth,
                auth_service,
                router_pb2_grpc.RouterServiceStub(router_channel),
                FleetLogs(LogFolder(config.log_dir, config.log_stems), channels, call_timeout_s),
                call_timeout_s,
                config.adapter_timeout_s,
            ),
            keys_router(auth, auth_service, call_timeout_s),
            usage_router(auth, auth_service, call_timeout_s),
            own_usage_router(auth_service, call_timeout_s),
            audit_router(auth, auth_service, call_timeout_s),
        )
        api = build_api(routers)
        app = EdgeApp(InferenceEndpoint(context), api, routes_of(api, routers), config.max_header_bytes)
        spawn(tasks, auth.run(), "auth")
        spawn(tasks, watch.run(), "table-watch")
        spawn(tasks, _sweep(context), "sweep")
        served = Cors(app, config.cors_origins) if config.cors_origins else app
        server = EdgeServer(_server_config(served, config))
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        log.info("serving", extra={"edge_id": edge_id, "address": _shown(listener)})
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            stopping.cancel()
            await serving
            log.error("the HTTP server ended by itself")
            return 1
        draining = True
        await asyncio.sleep(config.drain_notice_s)
        await _drain(server, serving, context)
    log.info("stopped")
    return 0


async def _drain(server: EdgeServer, serving: asyncio.Task[None], context: ExchangeContext) -> None:
    """Takes nothing new, lets what runs end, aborts the rest, and settles everything."""
    server.should_exit = True
    _, still_serving = await asyncio.wait({serving}, timeout=context.config.drain_timeout_s)
    if still_serving:
        log.warning("aborting requests", extra={"requests": len(context.running)})
        for exchange in tuple(context.running):
            exchange.shut_down()
    await serving
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await context.idle.wait()
            await context.auth.wait_settled()
    except TimeoutError:
        # The hosts settle what is left: they see this worker's sessions end.
        log.warning(
            "stopped before everything was settled",
            extra={"requests": len(context.running), "settlements": context.auth.unsettled},
        )


async def _sweep(context: ExchangeContext) -> None:
    """Looks at every running request's deadlines, one task instead of a timer for each, and publishes the metrics."""
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_S)
        now = context.clock()
        for exchange in tuple(context.running):
            exchange.sweep(now)
        context.hosts.retire_absent()
        context.metrics.process.sample()
        context.metrics.in_flight.set(len(context.running))
        context.metrics.unsettled.set(context.auth.unsettled)
        context.metrics.flush()


def _server_config(app: AsgiApp, config: EdgeConfig) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Config(
        app,
        http=with_limits(config.max_header_bytes, config.body_timeout_s),
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=LISTEN_BACKLOG,
        timeout_keep_alive=math.ceil(config.keep_alive_timeout_s),
        # Only for what `_drain` could not end.
        timeout_graceful_shutdown=math.ceil(config.drain_timeout_s) + 2,
    )


def _listener(config: EdgeConfig, listen_fd: int | None) -> socket.socket:
    """Raises ConfigError if the address cannot be had."""
    if listen_fd is not None:
        # A copy: the supervisor's own descriptor stays as it is.
        listener = socket.socket(fileno=os.dup(listen_fd))
    else:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            listener = socket.create_server((config.host, config.port), family=family, backlog=LISTEN_BACKLOG)
        except OSError as e:
            raise ConfigError(f"fastapi_host, fastapi_port: {config.host}:{config.port}: {e.strerror}") from None
    listener.setblocking(False)
    return listener


def _shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
