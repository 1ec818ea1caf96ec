"""Composition root of an edge worker: build, wire, listen, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.ids import new_incarnation
from vllm_proxy.common.lifecycle import StopSignal, cancel_all, spawn
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.reload import Commit, Outcome, Reloader
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import ConfigError, LoadedSettings
from vllm_proxy.common.tracing.start import open_tracer
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.config import EdgeConfig
from vllm_proxy.edge.cors import Cors
from vllm_proxy.edge.engine_documents import EngineDocuments
from vllm_proxy.edge.exchange import ExchangeContext
from vllm_proxy.edge.fastapi_app import build_api, routes_of
from vllm_proxy.edge.fleet_logs import FleetLogs
from vllm_proxy.edge.front_door import FrontDoor
from vllm_proxy.edge.hosts import Hosts
from vllm_proxy.edge.http_server import LISTEN_BACKLOG, HttpLimits, HttpServer
from vllm_proxy.edge.inference import InferenceEndpoint
from vllm_proxy.edge.maintenance_listener import maintenance_listener
from vllm_proxy.edge.metrics import EdgeMetrics, leave_multiprocess, prepare_multiprocess
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

SWEEP_INTERVAL_S = 1.0
#: After the drain: for the ends of aborted requests and for their settlements.
SETTLE_TIMEOUT_S = 5.0
#: After the drain: for clients to take the last bytes of what was aborted.
LAST_BYTES_TIMEOUT_S = 2.0


async def serve(
    loaded: LoadedSettings, stop: StopSignal, listen_fd: int | None = None, on_ready: Callable[[], None] | None = None
) -> int:
    """Runs a worker on an inherited listening socket, or on one of its own. Calls `on_ready` once it serves."""
    config = EdgeConfig.from_settings(loaded)
    edge_id = new_incarnation("edge")
    prepare_multiprocess()
    listener = _listener(config, listen_fd)
    tasks: set[asyncio.Task[None]] = set()
    async with AsyncExitStack() as stack:
        stack.callback(leave_multiprocess)
        metrics = EdgeMetrics()
        tracer = open_tracer(config.tracing, "edge", "vllm_proxy_edge_", metrics.registry)
        if tracer is not None:
            stack.push_async_callback(tracer.close)
        auth_channel = open_channel(config.auth_address, config.grpc)
        stack.push_async_callback(auth_channel.close)
        router_channel = open_channel(config.router_address, config.grpc)
        stack.push_async_callback(router_channel.close)
        stack.push_async_callback(cancel_all, tasks)

        hosts = Hosts(edge_id, config.grpc)
        stack.push_async_callback(hosts.close)
        auth = AuthClient(
            partial(open_channel, config.auth_address, config.grpc),
            edge_id,
            config.grpc,
            config.admission_timeout_s,
            config.auth_silence_timeout_s,
        )
        watch = TableWatch(router_channel, edge_id, config.grpc, hosts.apply)
        context = ExchangeContext(
            config=config,
            hosts=hosts,
            auth=auth,
            metrics=metrics,
            spawn=lambda coroutine, name: spawn(tasks, coroutine, name),
            clock=time.monotonic,
            tracer=tracer,
        )
        stack.callback(context.metrics.flush)
        draining = False

        def channels() -> Mapping[str, grpc.aio.Channel]:
            known = {f"engine-{name}": hosts.channel_to(name) for name in hosts.table.hosts}
            return {"auth": auth_channel, "router": router_channel} | {k: c for k, c in known.items() if c is not None}

        auth_service = auth_pb2_grpc.AuthServiceStub(auth_channel)
        call_timeout_s = config.grpc.call_timeout_s
        # Each has files of its own, and any may be on another machine.
        addresses = config.auth_address.split(",")
        auth_replicas = {
            "auth" if number == 0 else f"auth-{number}": open_channel(address, config.grpc)
            for number, address in enumerate(addresses if len(addresses) > 1 else ())
        }
        for channel in auth_replicas.values():
            stack.push_async_callback(channel.close)
        logs = LogFolder(config.log_dir, config.log_stems)
        routers = (
            health_router(hosts, lambda: {"auth": auth.connected, "router": watch.connected}, lambda: draining),
            metrics_router(context.metrics, channels, config.grpc.call_timeout_s),
            models_router(hosts.table, auth),
            admin_router(
                auth,
                auth_service,
                router_pb2_grpc.RouterServiceStub(router_channel),
                FleetLogs(logs, lambda: {**channels(), **auth_replicas}, call_timeout_s),
                call_timeout_s,
                config.adapter_timeout_s,
            ),
            keys_router(auth, auth_service, call_timeout_s),
            usage_router(auth, auth_service, call_timeout_s),
            own_usage_router(auth_service, call_timeout_s),
            audit_router(auth, auth_service, call_timeout_s),
        )
        api = build_api(routers, EngineDocuments(hosts, call_timeout_s).read)
        endpoint = InferenceEndpoint(context)
        door = FrontDoor(endpoint, api, routes_of(api, routers), context.spawn)
        handler = Cors(door, config.cors_origins) if config.cors_origins else door
        server = HttpServer(handler, _http_limits(config), context.clock)

        def prepare(new: LoadedSettings) -> Commit:
            changed = EdgeConfig.from_settings(new)

            async def commit(outcome: Outcome) -> None:
                # Those that were built with it keep the lengths of buffers.
                context.config = dataclasses.replace(changed, max_buffered_bytes=config.max_buffered_bytes)
                auth.timeout_s = changed.admission_timeout_s
                auth.silence_timeout_s = changed.auth_silence_timeout_s
                server.limits = _http_limits(context.config)
                endpoint.follow_config()

            return commit

        reloader = Reloader("edge", loaded, prepare)
        stack.push_async_callback(reloader.close)
        await stack.enter_async_context(maintenance_listener(config, edge_id, reloader, logs))
        spawn(tasks, reloader.run(stop.hangup), "reload")
        spawn(tasks, auth.run(), "auth")
        spawn(tasks, watch.run(), "table-watch")
        spawn(tasks, _sweep(context, server), "sweep")
        await server.start(listener)
        if on_ready is not None:
            on_ready()
        log.info("serving", extra={"edge_id": edge_id, "address": _shown(listener)})
        await stop.wait()
        draining = True
        await asyncio.sleep(context.config.drain_notice_s)
        await _drain(server, context)
    log.info("stopped")
    return 0


async def _drain(server: HttpServer, context: ExchangeContext) -> None:
    """Takes nothing new, lets what runs end, aborts the rest, and settles everything."""
    if not await server.stop(context.config.drain_timeout_s):
        log.warning("aborting requests", extra={"requests": len(context.running)})
        for exchange in tuple(context.running):
            exchange.shut_down()
        if not await server.stop(LAST_BYTES_TIMEOUT_S):
            server.abort()
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


async def _sweep(context: ExchangeContext, server: HttpServer) -> None:
    """Looks at every deadline of connections and running requests, one task instead of a timer for each, and publishes
    the metrics."""
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_S)
        now = context.clock()
        server.sweep(now)
        for exchange in tuple(context.running):
            exchange.sweep(now)
        context.hosts.retire_absent()
        context.metrics.process.sample()
        context.metrics.in_flight.set(len(context.running))
        context.metrics.unsettled.set(context.auth.unsettled)
        context.metrics.flush()


def _http_limits(config: EdgeConfig) -> HttpLimits:
    return HttpLimits(
        max_head_bytes=config.max_header_bytes,
        max_buffered_bytes=config.max_buffered_bytes,
        receive_timeout_s=config.body_timeout_s,
        keep_alive_timeout_s=config.keep_alive_timeout_s,
        drain_idle_s=config.drain_idle_s,
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
