"""Writes down which hosts there are after each change, for the router that comes after this one."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from vllm_proxy.router.declaration_store import DeclarationStore
from vllm_proxy.router.hosts import HostBook

log = logging.getLogger(__name__)


class HostSnapshots:
    def __init__(self, hosts: HostBook, store: DeclarationStore) -> None:
        self._hosts = hosts
        self._store = store
        self._dirty = asyncio.Event()

    def note(self, _host: str) -> None:
        """A host changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Writes the newest state whenever there is a newer one, until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._store.save_hosts(self._hosts.table())
            except sqlite3.Error:
                log.exception("the state of the hosts was not written")
