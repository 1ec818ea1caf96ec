"""What watchers of the table see, and when."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.wait import eventually

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.router.watch import TableFeed


class Picture:
    def __init__(self) -> None:
        self.hosts = [pb.Host(name="h", address="unix:h", load=pb.HostLoad(running=3))]

    def table(self) -> list[pb.Host]:
        return self.hosts

    def absent_models(self) -> list[str]:
        return ["gone"]


@pytest.fixture
async def feed() -> AsyncIterator[TableFeed]:
    built = TableFeed("least_loaded", {}, load_interval_s=0.05, first_version=100)
    yield built
    built.close()


async def next_table(watch: AsyncIterator[pb.WatchTableResponse]) -> pb.WatchTableResponse:
    async with asyncio.timeout(5):
        return await anext(watch)


async def test_nothing_is_sent_before_there_is_a_picture(feed: TableFeed) -> None:
    waiting = asyncio.ensure_future(next_table(feed.watch()))
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.show(Picture())
    table = await waiting
    assert table.version > 100
    assert list(table.absent_models) == ["gone"]


async def test_slow_watcher_gets_the_newest_only(feed: TableFeed) -> None:
    picture = Picture()
    feed.show(picture)
    watch = feed.watch()
    first = await next_table(watch)
    for number in range(5):
        picture.hosts = [pb.Host(name=f"h{number}")]
        feed.changed()
    second = await next_table(watch)
    assert second.version == first.version + 5
    assert [host.name for host in second.hosts] == ["h4"]


async def test_moving_loads_are_gathered(feed: TableFeed) -> None:
    feed.show(Picture())
    watch = feed.watch()
    first = await next_table(watch)
    for _ in range(50):
        feed.load_changed()
    second = await next_table(watch)
    assert second.version == first.version + 1
    assert second == pb.WatchTableResponse(
        version=second.version, hosts=[pb.Host(name="h", load=pb.HostLoad(running=3))], loads_only=True
    )


async def test_watcher_that_missed_a_change_gets_the_whole_table(feed: TableFeed) -> None:
    feed.show(Picture())
    watch = feed.watch()
    first = await next_table(watch)
    feed.changed()
    feed.load_changed()
    await eventually(lambda: feed.current().version == first.version + 2, "the loads have moved")
    table = await next_table(watch)
    assert not table.loads_only
    assert table.hosts[0].address == "unix:h"


async def test_change_goes_out_at_once_and_takes_the_loads_along(feed: TableFeed) -> None:
    feed.show(Picture())
    watch = feed.watch()
    first = await next_table(watch)
    feed.load_changed()
    feed.changed()
    assert (await next_table(watch)).version == first.version + 1
    feed.load_changed()
    assert (await next_table(watch)).version == first.version + 2


async def test_one_watcher_that_leaves_does_not_disturb_another(feed: TableFeed) -> None:
    feed.show(Picture())
    leaving, staying = feed.watch(), feed.watch()
    await next_table(leaving)
    await next_table(staying)
    gone = asyncio.ensure_future(next_table(leaving))
    waiting = asyncio.ensure_future(next_table(staying))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    feed.changed()
    assert (await waiting).version == feed.current().version


async def test_configuration_is_pushed_when_it_differs(feed: TableFeed) -> None:
    feed.show(Picture())
    version = feed.current().version
    feed.configure("least_loaded", {})
    assert feed.current().version == version
    feed.configure("round_robin", {"m": "vllm"})
    table = feed.current()
    assert (table.version, table.policy, dict(table.model_backend_mapping)) == (
        version + 1,
        "round_robin",
        {"m": "vllm"},
    )


async def test_close_ends_every_watch(feed: TableFeed) -> None:
    feed.show(Picture())
    watch = feed.watch()
    await next_table(watch)
    ending = asyncio.ensure_future(next_table(watch))
    await asyncio.sleep(0)
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await ending
