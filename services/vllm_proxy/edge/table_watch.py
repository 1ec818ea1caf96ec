"""Keeps the routing table that the router pushes. An outage of the router freezes it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc.aio

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.settings import Grpc

log = logging.getLogger(__name__)


class TableWatch:
    """The client of `RouterService.WatchTable`. `apply` is called with each table; `run` never returns."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        edge_id: str,
        settings: Grpc,
        apply: Callable[[pb.WatchTableResponse], None],
    ) -> None:
        self._stub = router_pb2_grpc.RouterServiceStub(channel)
        self._edge_id = edge_id
        self._min_s = settings.reconnect_min_s
        self._max_s = settings.reconnect_max_s
        self._apply = apply
        #: True from a table's arrival until the watch breaks.
        self.connected = False

    async def run(self) -> None:
        delay_s = self._min_s
        while True:
            call = self._stub.WatchTable(pb.WatchTableRequest(edge_id=self._edge_id), wait_for_ready=True)
            detail = "closed by the router"
            try:
                async for table in call:
                    if not self.connected:
                        self.connected = True
                        delay_s = self._min_s
                        log.info("session open", extra={"peer": "router"})
                    self._apply(table)
            except grpc.aio.AioRpcError as e:
                detail = f"{e.code().name}: {e.details()}"
            finally:
                call.cancel()
            if self.connected:
                self.connected = False
                log.warning("session lost", extra={"peer": "router", "detail": detail})
            await asyncio.sleep(random.uniform(self._min_s / 2, delay_s))
            delay_s = min(delay_s * 2, self._max_s)
