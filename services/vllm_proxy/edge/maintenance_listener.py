"""Where one edge worker answers maintenance calls: a Unix socket of its own, since workers share their HTTP port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.maintenance import SERVICE_NAME, MaintenanceServicer
from vllm_proxy.common.metrics import process_registry
from vllm_proxy.common.reload import Reloader
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.rpc.worker_sockets import remove_worker_socket, sweep_dead_workers, worker_address
from vllm_proxy.edge.config import EdgeConfig


@asynccontextmanager
async def maintenance_listener(
    config: EdgeConfig, edge_id: str, reloader: Reloader, logs: LogFolder
) -> AsyncIterator[None]:
    rpc = RpcServer(worker_address(config.run_dir, edge_id), config.grpc, [SERVICE_NAME])
    maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(
        MaintenanceServicer(reloader, logs, process_registry()), rpc.server
    )
    sweep_dead_workers(config.run_dir)
    await rpc.listen()
    try:
        await rpc.set_serving(True)
        yield
    finally:
        await rpc.stop(0)
        remove_worker_socket(rpc.address)
