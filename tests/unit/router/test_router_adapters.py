"""Adapters as desired state, over hosts that are only objects."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.wait import eventually

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.errors import (
    AdapterExists,
    AdapterNotFound,
    EngineUnavailable,
    InvalidAdapter,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
)
from vllm_proxy.router.adapters import Adapters
from vllm_proxy.router.convergence import Convergence
from vllm_proxy.router.declaration_store import DeclarationStore
from vllm_proxy.router.declarations import Declarations
from vllm_proxy.router.hosts import HostBook
from vllm_proxy.router.link import HostLink
from vllm_proxy.router.named_locks import NamedLocks
from vllm_proxy.router.registrar import Registrar

NATIVE, DECLARED, PRELOAD = pb.ADAPTER_ORIGIN_NATIVE, pb.ADAPTER_ORIGIN_DECLARED, pb.ADAPTER_ORIGIN_PRELOAD


class Router:
    """The router's logic over one store file."""

    def __init__(self, path: Path, timeout_s: float = 5.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self.tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> "Router":
        self.store = DeclarationStore(self._path)
        state = await self.store.open()
        locks = NamedLocks()
        self.declarations = Declarations(self.store, state, self._later)
        self.hosts = HostBook(60, 60)
        self.convergence = Convergence(self.hosts, self.declarations, locks, self._timeout_s)
        self.adapters = Adapters(self.hosts, self.declarations, self.convergence, locks, self._timeout_s)
        self.registrar = Registrar(self.hosts, self.declarations, locks)
        self.hosts.on_change.append(self.convergence.look_at)
        return self

    def _later(self, write: Awaitable[None]) -> None:
        self.tasks.add(asyncio.ensure_future(write))

    async def written(self) -> None:
        await asyncio.gather(*self.tasks)

    async def stop(self) -> None:
        await self.adapters.close()
        await self.convergence.close()
        await self.written()
        await self.store.close()

    async def kill(self) -> None:
        """As `stop`: nothing is written that was not written before."""
        await self.stop()

    def declared(self) -> dict[str, list[str]]:
        return {f"{row.declaration.name}@{row.declaration.host}": row.loaded_on for row in self.adapters.declared()}


class Host:
    """Carries out commands in memory as an engine host does, when `hold` is not set."""

    def __init__(self, name: str, *, base: str = "base", incarnation: str = "1") -> None:
        self.name = name
        self.base = base
        self.incarnation = incarnation
        self.adapters: dict[str, pb.Model] = {}
        self.broken: dict[str, str] = {}
        self.answering = asyncio.Event()
        self.answering.set()
        self.done: list[str] = []
        self._router: Router | None = None
        self._link: HostLink | None = None
        self._task: asyncio.Task[None] | None = None

    def report(self) -> pb.Host:
        return pb.Host(
            name=self.name,
            incarnation=f"{self.name}-{self.incarnation}",
            address=f"unix:{self.name}",
            engine="sim",
            state=pb.HOST_STATE_SERVING,
            models=[pb.Model(name=self.base), *self.adapters.values()],
        )

    def put(self, name: str, path: str, origin: pb.AdapterOrigin) -> None:
        self.adapters[name] = pb.Model(name=name, base=self.base, path=path, digest=f"of {path}", origin=origin)

    def join(self, router: Router) -> "Host":
        self._router = router
        self._link = router.registrar.open(pb.RegisterRequest(host=self.report()))
        self._task = asyncio.create_task(self._serve(self._link))
        return self

    def tell(self, *withdrawn: str) -> None:
        assert self._router is not None and self._link is not None
        self._router.registrar.take(self._link, pb.RegisterRequest(host=self.report(), withdrawn_adapters=withdrawn))

    async def leave(self) -> None:
        assert self._router is not None and self._link is not None and self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._router.registrar.end(self._link)

    async def _serve(self, link: HostLink) -> None:
        while commands := await link.outgoing():
            for command in commands:
                await self.answering.wait()
                result = self._carry_out(command)
                assert self._router is not None
                self._router.registrar.take(link, pb.RegisterRequest(host=self.report(), results=[result]))

    def _carry_out(self, command: pb.Command) -> pb.CommandResult:
        action = command.WhichOneof("action")
        name = command.load.name if action == "load" else command.unload
        result = pb.CommandResult(command_id=command.command_id)
        if action == "load":
            self.done.append(f"{'replace' if command.load.replace else 'load'} {name} {command.load.path}")
            if name in self.broken:
                result.reason, result.message = "INVALID_ADAPTER", self.broken[name]
            elif name in self.adapters and not command.load.replace:
                result.reason, result.message = "ADAPTER_EXISTS", "It is there."
            else:
                self.put(name, command.load.path, DECLARED)
        else:
            self.done.append(f"unload {name}")
            if self.adapters.pop(name, None) is None:
                result.reason, result.message = "ADAPTER_NOT_FOUND", "It is not there."
        return result


def spec(name: str = "pirate", path: str = "/a/1", *, base: str = "", replace: bool = False) -> pb.AdapterSpec:
    return pb.AdapterSpec(name=name, path=path, base=base, replace=replace)


@pytest.fixture
async def make_router(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Router]]]:
    routers: list[Router] = []

    async def make(timeout_s: float = 5.0) -> Router:
        router = await Router(tmp_path / "router.db", timeout_s).start()
        routers.append(router)
        return router

    yield make
    for router in routers[-1:]:
        await router.stop()


@pytest.fixture
async def router(make_router: Callable[..., Awaitable[Router]]) -> Router:
    return await make_router()


async def test_load_reaches_every_host_of_the_base(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    other = Host("c", base="other").join(router)
    assert await router.adapters.load(spec(base="base")) == ["a", "b"]
    assert set(a.adapters) == set(b.adapters) == {"pirate"}
    assert not other.adapters
    assert router.declared() == {"pirate@": ["a", "b"]}


async def test_base_may_be_left_out_only_if_there_is_one(router: Router) -> None:
    with pytest.raises(EngineUnavailable):
        await router.adapters.load(spec())
    Host("a").join(router)
    assert await router.adapters.load(spec("one")) == ["a"]
    Host("b", base="other").join(router)
    with pytest.raises(InvalidRequest, match="base, other"):
        await router.adapters.load(spec("two"))
    with pytest.raises(ModelNotFound, match="nobody"):
        await router.adapters.load(spec("two", base="nobody"))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 129, "a b"])
async def test_bad_names_reach_no_host(router: Router, name: str) -> None:
    host = Host("a").join(router)
    with pytest.raises(InvalidAdapter):
        await router.adapters.load(spec(name))
    with pytest.raises(InvalidAdapter):
        await router.adapters.load(spec("base"))
    assert not host.done


async def test_failure_takes_it_back_everywhere_and_names_the_host(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    b.broken["pirate"] = "rank 128 is above 64."
    with pytest.raises(InvalidAdapter, match=r"Host b: rank 128 is above 64\.") as caught:
        await router.adapters.load(spec())
    assert caught.value.metadata == {"host": "b"}
    assert not a.adapters
    assert router.declared() == {}


async def test_failed_replacement_restores_what_was_there(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    await router.adapters.load(spec(path="/a/1"))
    b.broken["pirate"] = "no"
    with pytest.raises(AdapterExists):
        await router.adapters.load(spec(path="/a/2"))
    with pytest.raises(InvalidAdapter):
        await router.adapters.load(spec(path="/a/2", replace=True))
    assert a.done == ["load pirate /a/1", "replace pirate /a/2", "replace pirate /a/1"]
    assert a.adapters["pirate"].path == b.adapters["pirate"].path == "/a/1"
    assert router.adapters.declared()[0].declaration.path == "/a/1"


async def test_host_that_does_not_answer_fails_the_call_and_is_put_right_later(
    make_router: Callable[..., Awaitable[Router]],
) -> None:
    router = await make_router(timeout_s=0.05)
    a, b = Host("a").join(router), Host("b").join(router)
    b.answering.clear()
    with pytest.raises(RequestTimeout, match="Host b"):
        await router.adapters.load(spec())
    assert not a.adapters
    b.answering.set()
    await eventually(lambda: b.done == ["load pirate /a/1", "unload pirate"], "b takes back its late load")
    assert not b.adapters


async def test_host_that_dies_while_loading_fails_the_call(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    b.answering.clear()
    call = asyncio.create_task(router.adapters.load(spec()))
    await eventually(lambda: a.adapters, "a has it")
    await b.leave()
    Host("b", incarnation="2").join(router)
    with pytest.raises(EngineUnavailable, match="Host b"):
        await call
    assert not a.adapters


async def test_call_is_carried_out_though_its_caller_left(router: Router) -> None:
    host = Host("a").join(router)
    host.answering.clear()
    call = asyncio.create_task(router.adapters.load(spec()))
    await eventually(lambda: host._link is not None and host._link._pending, "sent")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    host.answering.set()
    await eventually(lambda: router.declared() == {"pirate@": ["a"]}, "declared")


async def test_calls_for_one_name_come_one_after_another(router: Router) -> None:
    host = Host("a").join(router)
    host.answering.clear()
    calls = [asyncio.create_task(router.adapters.load(spec())) for _ in range(3)]
    calls.append(asyncio.create_task(router.adapters.unload("pirate")))
    other = asyncio.create_task(router.adapters.load(spec("other")))
    await asyncio.sleep(0)
    host.answering.set()
    outcomes = await asyncio.gather(*calls, other, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, AdapterExists, AdapterExists, list, list]
    assert [step for step in host.done if "pirate" in step] == ["load pirate /a/1", "unload pirate"]


async def test_unload_withdraws_it(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    await router.adapters.load(spec())
    assert await router.adapters.unload("pirate") == ["a", "b"]
    assert not a.adapters and not b.adapters
    assert router.declared() == {}
    with pytest.raises(AdapterNotFound):
        await router.adapters.unload("pirate")


async def test_host_that_was_away_at_the_unload_is_put_right(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    await router.adapters.load(spec())
    await b.leave()
    assert await router.adapters.unload("pirate") == ["a"]
    b.join(router)
    await eventually(lambda: not b.adapters, "b unloads it")
    assert not a.adapters


async def test_host_that_was_away_at_the_replacement_is_put_right(router: Router) -> None:
    b = Host("b")
    Host("a").join(router)
    b.join(router)
    await router.adapters.load(spec(path="/a/1"))
    await b.leave()
    await router.adapters.load(spec(path="/a/2", replace=True))
    b.join(router)
    await eventually(lambda: b.adapters["pirate"].path == "/a/2", "b has the new weights")


async def test_restarted_host_and_restarted_router_replay(make_router: Callable[..., Awaitable[Router]]) -> None:
    first = await make_router()
    a = Host("a").join(first)
    await first.adapters.load(spec())
    await a.leave()
    await first.kill()
    second = await make_router()
    back = Host("a", incarnation="2").join(second)
    await eventually(lambda: set(back.adapters) == {"pirate"}, "replayed")
    assert second.declared() == {"pirate@": ["a"]}


async def test_router_that_died_half_way_takes_the_load_back(make_router: Callable[..., Awaitable[Router]]) -> None:
    first = await make_router()
    a, b = Host("a").join(first), Host("b").join(first)
    b.answering.clear()
    call = asyncio.create_task(first.adapters.load(spec()))
    await eventually(lambda: a.adapters, "a has it")
    await first.kill()
    await asyncio.gather(call, return_exceptions=True)
    await a.leave()
    second = await make_router()
    a.join(second)
    await eventually(lambda: not a.adapters, "taken back")


async def test_preloaded_and_resolved_adapters_are_left_alone(router: Router) -> None:
    host = Host("a")
    host.put("pre", "/p", PRELOAD)
    host.put("found", "/f", pb.ADAPTER_ORIGIN_RESOLVED)
    host.join(router)
    await router.adapters.load(spec())
    await router.adapters.unload("pirate")
    assert set(host.adapters) == {"pre", "found"}
    assert router.declared() == {}


async def test_native_load_is_kept_for_that_host_alone(make_router: Callable[..., Awaitable[Router]]) -> None:
    first = await make_router()
    a, b = Host("a").join(first), Host("b").join(first)
    a.put("own", "/n", NATIVE)
    a.tell()
    assert first.declared() == {"own@a": ["a"]}
    await a.leave()
    await first.kill()
    second = await make_router()
    back = Host("a", incarnation="2").join(second)
    await eventually(lambda: set(back.adapters) == {"own"}, "replayed to a")
    assert not b.adapters
    del back.adapters["own"]
    back.tell("own")
    assert second.declared() == {}
    await eventually(lambda: not second.convergence._working, "converged")
    assert back.done == ["load own /n"]


async def test_native_unload_of_one_for_all_leaves_that_host_out(router: Router) -> None:
    a, b = Host("a").join(router), Host("b").join(router)
    await router.adapters.load(spec())
    del a.adapters["pirate"]
    a.tell("pirate")
    assert router.declared() == {"pirate@": ["b"]}
    await a.leave()
    a.incarnation = "2"
    a.join(router)
    await eventually(lambda: not router.convergence._working, "converged")
    assert not a.adapters
    del b.adapters["pirate"]
    b.tell("pirate")
    assert router.declared() == {}


async def test_failed_replay_is_shown_and_tried_again_when_the_host_restarts(router: Router) -> None:
    Host("a").join(router)
    await router.adapters.load(spec())
    b = Host("b")
    b.broken["pirate"] = "The folder is not there."
    b.join(router)
    await eventually(lambda: router.convergence.errors("pirate"), "the error is shown")
    assert router.adapters.declared()[0].errors == ["b: The folder is not there."]
    assert b.done == ["load pirate /a/1"]
    await b.leave()
    b.broken.clear()
    b.incarnation = "2"
    b.join(router)
    await eventually(lambda: "pirate" in b.adapters, "replayed")
    await eventually(lambda: not router.adapters.declared()[0].errors, "the error is gone")
