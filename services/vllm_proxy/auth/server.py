"""Builds the auth service, runs it until it is told to stop, and takes it down in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from prometheus_client import CollectorRegistry

from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.config import AuthConfig, Limits
from vllm_proxy.auth.decision import Clock, SystemClock
from vllm_proxy.auth.keys import KeyRing, UnreadableKeysFile, create_if_missing, load_keys, warn_about_keys
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.servicer import SERVICE_NAME, AuthServicer
from vllm_proxy.auth.sqlite_store import SqliteStore
from vllm_proxy.auth.store import Store
from vllm_proxy.common.config_watch import watch_settings
from vllm_proxy.common.lifecycle import StopSignal, cancel_all, spawn
from vllm_proxy.common.maintenance import SERVICE_NAME as MAINTENANCE
from vllm_proxy.common.maintenance import LogFolder, MaintenanceServicer
from vllm_proxy.common.metrics import serve_metrics
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings

log = logging.getLogger(__name__)

#: How often leases are looked at for having lapsed.
_TICK_S = 0.25


async def serve(loaded: LoadedSettings, stop: StopSignal) -> int:
    """Returns 0 after a stop, 1 if the store failed. Raises ConfigError."""
    config = AuthConfig.from_settings(loaded.settings)
    metrics = AuthMetrics(CollectorRegistry())
    keys = _first_keys(config)
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        store = SqliteStore(config.store_path, full_sync=config.full_sync, metrics=metrics)
        stack.push_async_callback(store.close)
        admission = restored(config, keys, metrics, clock, store)
        servicer = AuthServicer(admission, store, config.api_keys_file, metrics)

        rpc = RpcServer(config.address, loaded.settings.grpc, [SERVICE_NAME, MAINTENANCE])
        auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, rpc.server)
        logs = LogFolder(loaded.settings.logs.dir, ["auth"])
        maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(MaintenanceServicer(loaded, logs), rpc.server)
        serve_metrics(config.metrics_port, metrics.registry)

        address = await rpc.listen()
        stack.push_async_callback(rpc.stop, config.drain_timeout_s)
        tasks: set[asyncio.Task[object]] = set()
        stack.push_async_callback(cancel_all, tasks)

        def apply(settings: Settings) -> None:
            admission.use_limits(Limits.from_settings(settings.rate_limit))

        spawn(tasks, watch_settings(loaded.path, apply), "auth-config-watch")
        ticking = spawn(tasks, _tick(admission, store), "auth-tick")
        stopping = spawn(tasks, stop.wait(), "auth-stop")
        await rpc.set_serving(True)
        log.info("ready", extra={"address": address, "keys": len(keys), "store": str(config.store_path)})

        await asyncio.wait([stopping, store.failed, ticking], return_when=asyncio.FIRST_COMPLETED)
        await rpc.set_serving(False)
        servicer.drain()
        return 0 if stop.requested and not store.failed.done() else 1


def restored(config: AuthConfig, keys: KeyRing, metrics: AuthMetrics, clock: Clock, store: Store) -> Admission:
    """An admission that goes on where the store's last process ended."""
    admission = Admission(config, keys, metrics, clock)
    admission.restore(store.load(clock.unix_ms() - config.settle_grace_ns // 1_000_000))
    metrics.keys.set(len(keys))
    return admission


def _first_keys(config: AuthConfig) -> KeyRing:
    try:
        create_if_missing(config.api_keys_file)
        keys = load_keys(config.api_keys_file)
    except OSError as e:
        raise ConfigError(f"api_keys_file: {config.api_keys_file}: cannot be created: {e.strerror}") from None
    except UnreadableKeysFile as e:
        raise ConfigError(f"api_keys_file: {e}") from None
    warn_about_keys(config.api_keys_file, keys)
    return keys


async def _tick(admission: Admission, store: Store) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        if records := admission.tick():
            store.append(records, lambda: None)
