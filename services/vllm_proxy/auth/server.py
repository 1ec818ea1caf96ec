"""Builds the auth service, runs it until it is told to stop, and takes it down in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging

from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.audit_log import AuditLog
from vllm_proxy.auth.clock import Clock, SystemClock
from vllm_proxy.auth.config import AuthConfig
from vllm_proxy.auth.key_administration import KeyAdministration
from vllm_proxy.auth.key_entry import parse_entry
from vllm_proxy.auth.keys import ApiKey, KeyRing, KeySource, key_id_of
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.reloading import ReloadedFiles
from vllm_proxy.auth.servicer import SERVICE_NAME, AuthServicer
from vllm_proxy.auth.sqlite_store import SqliteStore
from vllm_proxy.auth.store import KeyStored, Store
from vllm_proxy.auth.wait_timer import WaitTimer
from vllm_proxy.common.lifecycle import StopSignal, cancel_all, spawn
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.maintenance import SERVICE_NAME as MAINTENANCE
from vllm_proxy.common.maintenance import MaintenanceServicer
from vllm_proxy.common.metrics import process_registry, serve_metrics
from vllm_proxy.common.reload import Reloader
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import LoadedSettings
from vllm_proxy.common.tracing.start import open_tracer

log = logging.getLogger(__name__)

#: How often leases are looked at for having lapsed.
_TICK_S = 0.25


async def serve(loaded: LoadedSettings, stop: StopSignal) -> int:
    """Returns 0 after a stop, 1 if the store failed. Raises ConfigError."""
    config = AuthConfig.from_settings(loaded.settings)
    metrics = AuthMetrics(process_registry())
    serve_metrics(config.metrics_port, metrics.registry)
    files = ReloadedFiles(config.api_keys_file)
    # From here on a change is seen, also one that comes while this replica stands by.
    reloader = Reloader("auth", loaded, files.prepare, [config.api_keys_file])
    declared = files.declared_keys()
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        tracer = open_tracer(loaded.settings.tracing, "auth", "vllm_proxy_auth_", metrics.registry)
        if tracer is not None:
            stack.push_async_callback(tracer.close)
        store = await _opened(config, metrics, clock, stop)
        if store is None:
            return 0
        stack.push_async_callback(store.close)
        if config.redis_url:  # the file may have changed while this replica stood by
            declared = files.declared_keys()
        admission = restored(config, declared, metrics, clock, store)
        # Keys and accounts stay: a million of them need not be looked at again and again.
        gc.collect()
        gc.freeze()
        audit = AuditLog(store, clock, config.audit_retention_days)
        keys = KeyAdministration(admission, store, audit, clock, config.api_keys_file, config.rotation_overlap_ms)
        servicer = AuthServicer(admission, store, keys, audit, clock, config.api_keys_file, metrics, tracer)

        rpc = RpcServer(config.address, loaded.settings.grpc, [SERVICE_NAME, MAINTENANCE])
        auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, rpc.server)
        logs = LogFolder(loaded.settings.logs.dir, ["auth"])
        maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(
            MaintenanceServicer(reloader, logs, metrics.registry), rpc.server
        )

        address = await rpc.listen()
        # Who cannot write has nothing to answer: peers had better look for another replica.
        stack.push_async_callback(lambda: rpc.stop(0 if store.failed.done() else config.drain_timeout_s))
        tasks: set[asyncio.Task[object]] = set()
        stack.push_async_callback(cancel_all, tasks)

        files.admission = admission
        stack.push_async_callback(reloader.close)
        timer = WaitTimer(admission.waiting, clock)
        stack.callback(timer.close)
        spawn(tasks, reloader.run(stop.hangup), "auth-reload")
        ticking = spawn(tasks, _tick(admission, audit, store), "auth-tick")
        stopping = spawn(tasks, stop.wait(), "auth-stop")
        await rpc.set_serving(True)
        log.info("ready", extra={"address": address, "keys": len(admission.keys), "store": store.place})

        await asyncio.wait([stopping, store.failed, ticking], return_when=asyncio.FIRST_COMPLETED)
        await rpc.set_serving(False)
        servicer.drain()
        return 0 if stop.requested and not store.failed.done() else 1


async def _opened(config: AuthConfig, metrics: AuthMetrics, clock: Clock, stop: StopSignal) -> Store | None:
    """None if a stop was asked for while this replica stood by."""
    if not config.redis_url:
        metrics.leader.set(1)
        return SqliteStore(
            config.store_path,
            full_sync=config.full_sync,
            metrics=metrics,
            ledger_retention_days=config.ledger_retention_days,
            clock=clock,
        )
    from vllm_proxy.auth.redis_store import RedisStore

    opening = asyncio.create_task(RedisStore.open(config, metrics, lambda: _since(config, clock)))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
        return opening.result() if opening.done() else None
    finally:
        await cancel_all({opening, stopping})


def _since(config: AuthConfig, clock: Clock) -> tuple[int, int, int]:
    """What `Store.load` wants to know."""
    today = Calendar(clock.unix_ms())
    grace_ms = config.settle_grace_ns // 1_000_000
    return today.now_ms - grace_ms, today.day_start_ms, today.month_start_ms


def restored(config: AuthConfig, declared: list[ApiKey], metrics: AuthMetrics, clock: Clock, store: Store) -> Admission:
    """An admission that goes on where the store's last process ended."""
    state = store.load(*_since(config, clock))
    keys = KeyRing(declared, (key for row in state.keys if (key := _made_key(row)) is not None))
    admission = Admission(config, keys, metrics, clock)
    admission.restore(state)
    metrics.keys.set(len(keys))
    return admission


def _made_key(row: KeyStored) -> ApiKey | None:
    try:
        return parse_entry(json.loads(row.data_json), KeySource.API)
    except ValueError as e:
        log.error("stored api key skipped", extra={"key_id": key_id_of(row.digest), "detail": str(e)})
        return None


async def _tick(admission: Admission, audit: AuditLog, store: Store) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        if records := [*admission.tick(), *audit.tick()]:
            store.append(records, lambda: None)
