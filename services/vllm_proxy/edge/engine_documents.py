"""The OpenAPI documents of the engines behind this worker, asked for when somebody reads the API's description."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import orjson

from vllm_proxy.api.engine.v1 import engine_pb2, engine_pb2_grpc
from vllm_proxy.edge.hosts import Hosts

log = logging.getLogger(__name__)

#: How long a host that did not tell is left alone: strangers may read the description.
RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class EngineDocument:
    #: The host's name.
    host: str
    #: Names the host and its start.
    incarnation: str
    openapi: dict[str, Any]


class EngineDocuments:
    """Each host is asked once for each of its starts."""

    def __init__(self, hosts: Hosts, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._clock = clock
        self._asking = asyncio.Lock()
        #: By incarnation; None: it has no document.
        self._known: dict[str, EngineDocument | None] = {}
        self._retry_at: dict[str, float] = {}

    async def read(self) -> list[EngineDocument]:
        """Those of the hosts in the table, in the order of their names."""
        async with self._asking:
            present = {host.incarnation: host for host in self._hosts.table.hosts.values()}
            self._known = {key: document for key, document in self._known.items() if key in present}
            self._retry_at = {key: at for key, at in self._retry_at.items() if key in present}
            now = self._clock()
            missing = [
                (host.name, key)
                for key, host in present.items()
                if key not in self._known and self._retry_at.get(key, now) <= now
            ]
            await asyncio.gather(*(self._ask(name, incarnation) for name, incarnation in missing))
            return sorted((d for d in self._known.values() if d is not None), key=lambda document: document.host)

    async def _ask(self, name: str, incarnation: str) -> None:
        channel = self._hosts.channel_to(name)
        if channel is None:
            return
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        try:
            answer = await stub.GetApiDescription(engine_pb2.GetApiDescriptionRequest(), timeout=self._timeout_s)
            openapi = await asyncio.to_thread(_parsed, answer.openapi_json)
        except (grpc.aio.AioRpcError, orjson.JSONDecodeError) as e:
            self._retry_at[incarnation] = self._clock() + RETRY_S
            detail = e.code().name if isinstance(e, grpc.aio.AioRpcError) else str(e)
            log.warning("a host tells nothing of its routes", extra={"host": name, "detail": detail})
            return
        self._known[incarnation] = EngineDocument(name, incarnation, openapi) if openapi else None


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Earlier versions of OpenAPI have another dialect of JSON Schema: they are left out."""
    document = orjson.loads(text) if text else None
    if isinstance(document, dict) and str(document.get("openapi", "")).startswith("3.1"):
        return document
    return None
