"""kill -9 of each service in turn under fifty streams, with the real supervisor bringing it back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest
from tests.support.cluster import free_port
from tests.support.proxyctl import proxyctl
from tests.support.site import Site
from tests.support.streams import live_streams
from tests.support.wait import eventually

STREAMS = 50
#: Contract: new requests work so soon after a kill.
BACK_WITHIN_S = 10.0
TOKENS = 300


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site({"auth": {"lease_ttl_s": 5}}, port=free_port())
    try:
        proxyctl(site, "start")
        yield site
    finally:
        proxyctl(site, "stop")
        site.remove()


def pid_of(site: Site, service: str) -> int | None:
    (path,) = [p for p in (site.root / ".pids").glob("*.pid") if p.stem.startswith(service)] or [None]
    try:
        return int(path.read_text()) if path else None
    except ValueError:  # it is being written
        return None


@pytest.mark.parametrize("service", ["auth", "router", "engine-sim", "edge"])
async def test_it_comes_back_and_nothing_leaks(site: Site, service: str) -> None:
    alice = site.client()
    before = await site.settled_usage()
    rows_before = len(site.journal())
    async with live_streams(alice, STREAMS, max_tokens=TOKENS) as streams:
        pid = pid_of(site, service)
        assert pid is not None
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: pid_of(site, service) not in (None, pid), f"{service} started again", BACK_WITHIN_S)

        async def answers() -> bool:
            try:
                return (await alice.chat()).status == 200
            except OSError:
                return False

        await eventually(answers, "new requests work", BACK_WITHIN_S)
        assert time.monotonic() - killed_at < BACK_WITHIN_S
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        if service in ("auth", "router"):
            assert all(outcome.done for outcome in outcomes), "running streams do not notice"
    used = await site.settled_usage() - before
    assert site.control.open_leases() == []
    await eventually(lambda: site.control.in_flight() == 0, "nothing in flight at the host")
    if service != "engine-sim":  # the journal of a killed engine is gone
        rows = [row for row in site.journal()[rows_before:] if row["completion_tokens"]]
        assert used.completion_tokens == sum(row["completion_tokens"] for row in rows)
    else:
        assert used.completion_tokens >= sum(stream.tokens for stream in streams)
