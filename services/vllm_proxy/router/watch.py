"""The routing table as it is pushed to edges.

What changes where requests may go is pushed at once, as a whole table; loads that moved are gathered and pushed alone,
at most once per heartbeat. A watcher that is slow to read gets the newest next, never a queue of what was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from vllm_proxy.api.router.v1 import router_pb2 as pb


class Picture(Protocol):
    """What a table is made of (HostBook)."""

    def table(self) -> list[pb.Host]: ...

    def absent_models(self) -> list[str]: ...


class TableFeed:
    def __init__(
        self, policy: str, model_backend_mapping: Mapping[str, str], load_interval_s: float, first_version: int
    ) -> None:
        """`first_version` must be above every version of an earlier router, so that edges see it grow."""
        self._policy = policy
        self._mapping = dict(model_backend_mapping)
        self._load_interval_s = load_interval_s
        self._version = first_version
        #: Of the last whole table; later versions differ from it in loads only.
        self._whole_version = first_version
        self._picture: Picture | None = None
        self._table: pb.WatchTableResponse | None = None
        self._loads: pb.WatchTableResponse | None = None
        self._news: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def show(self, picture: Picture) -> None:
        """Sets what the tables are made of. Nothing is pushed before."""
        self._picture = picture
        self.changed()

    def configure(self, policy: str, model_backend_mapping: Mapping[str, str]) -> None:
        if (policy, model_backend_mapping) != (self._policy, self._mapping):
            self._policy, self._mapping = policy, dict(model_backend_mapping)
            self.changed()

    def changed(self) -> None:
        """Pushes a new table now."""
        self._advance()
        self._whole_version = self._version

    def load_changed(self) -> None:
        """Pushes the loads within the load interval."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._load_interval_s, self._advance)

    def _advance(self) -> None:
        self._drop_timer()
        self._version += 1
        self._table = self._loads = None
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def current(self) -> pb.WatchTableResponse:
        """The newest table; built once per version and shared, so not to be changed."""
        if self._table is None:
            picture = self._picture
            self._table = pb.WatchTableResponse(
                version=self._version,
                hosts=picture.table() if picture else (),
                policy=self._policy,
                model_backend_mapping=self._mapping,
                absent_models=picture.absent_models() if picture else (),
            )
        return self._table

    def _current_loads(self) -> pb.WatchTableResponse:
        if self._loads is None:
            reports = self._picture.table() if self._picture else ()
            self._loads = pb.WatchTableResponse(
                version=self._version,
                hosts=[pb.Host(name=report.name, load=report.load) for report in reports],
                loads_only=True,
            )
        return self._loads

    async def watch(self) -> AsyncGenerator[pb.WatchTableResponse, None]:
        """The newest table, then what changed each time that something did, until `close`."""
        sent = -1
        while not self._closed:
            if self._picture is None or sent == self._version:
                await self._next_news()
                continue
            table = self.current() if sent < self._whole_version else self._current_loads()
            sent = table.version
            yield table

    async def _next_news(self) -> None:
        if self._news is None or self._news.done():
            self._news = asyncio.get_running_loop().create_future()
        # Shared by all watchers: one that is cancelled must not cancel it for the others.
        await asyncio.shield(self._news)

    def close(self) -> None:
        """Ends every watch."""
        self._closed = True
        self.changed()

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
