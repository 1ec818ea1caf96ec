"""A host's Registration against the real router, over a Unix socket, in one process."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from tests.support.wait import eventually

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.errors import AdapterExists, InvalidAdapter, ServiceError
from vllm_proxy.common.lifecycle import StopSignal
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import LoadedSettings, Settings
from vllm_proxy.engine_host.registration import Registration
from vllm_proxy.router.server import serve

DEADLINE_S = 10.0


class Router:
    """The router service, started and stopped inside the test."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.model_validate(
            {
                "router": {
                    "address": f"unix:{folder}/r",
                    "state_file": str(folder / "state.db"),
                    "heartbeat_s": 0.1,
                    "host_timeout_s": 0.5,
                    "drain_timeout_s": 0.1,
                },
                "grpc": {"reconnect_max_s": 0.2},
            }
        )
        (folder / "config.yaml").touch()
        self._loaded = LoadedSettings(self.settings, folder / "config.yaml", folder)
        self._stop = StopSignal()
        self._task: asyncio.Task[int] | None = None

    async def start(self) -> None:
        self._stop = StopSignal()
        self._task = asyncio.create_task(serve(self._loaded, self._stop))
        async with open_channel(self.settings.router.address, self.settings.grpc) as channel:
            await router_pb2_grpc.RouterServiceStub(channel).ListHosts(
                pb.ListHostsRequest(), wait_for_ready=True, timeout=DEADLINE_S
            )

    def configure(self, text: str) -> None:
        self._loaded.path.write_text(text)

    async def stop(self) -> None:
        if self._task is not None:
            self._stop.request()
            assert await self._task == 0
            self._task = None


class Host:
    """An engine host without an engine: a state, adapters, and a Registration."""

    def __init__(self, router: Router, name: str, incarnation: str = "1") -> None:
        self.name = name
        self.report = pb.Host(
            name=name,
            incarnation=f"{name}-{incarnation}",
            address=f"unix:{name}",
            engine="sim",
            state=pb.HOST_STATE_SERVING,
            models=[pb.Model(name="base")],
        )
        self.commands: list[pb.Command] = []
        self.broken: str | None = None
        self.withdrawn: list[str] = []
        self.registration = Registration(
            router.settings.router.address, router.settings.grpc, self._snapshot, self._execute, self._take_withdrawn
        )
        self._task: asyncio.Task[None] | None = None

    async def _snapshot(self) -> pb.Host:
        copy = pb.Host()
        copy.CopyFrom(self.report)
        return copy

    def _take_withdrawn(self) -> list[str]:
        taken, self.withdrawn = self.withdrawn, []
        return taken

    async def _execute(self, command: pb.Command) -> None:
        self.commands.append(command)
        if self.broken:
            raise InvalidAdapter(self.broken)
        if command.WhichOneof("action") == "load":
            spec = command.load
            self.report.models.add(
                name=spec.name, base=spec.base, path=spec.path, digest="d", origin=pb.ADAPTER_ORIGIN_DECLARED
            )
        else:
            kept = [model for model in self.report.models if model.name != command.unload]
            del self.report.models[:]
            self.report.models.extend(kept)

    @property
    def adapters(self) -> set[str]:
        return {model.name for model in self.report.models if model.base}

    def start(self) -> None:
        self._task = asyncio.create_task(self.registration.run())

    async def crash(self) -> None:
        """Its stream breaks without a word."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def stop(self) -> None:
        self.report.state = pb.HOST_STATE_DRAINING
        self.registration.stop()
        assert self._task is not None
        await self._task


class Edge:
    """Watches the table, and asks the router as an admin would."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = router_pb2_grpc.RouterServiceStub(channel)
        self.tables: list[pb.WatchTableResponse] = []
        self.loads: dict[str, int] = {}
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for table in self.stub.WatchTable(pb.WatchTableRequest(edge_id="e"), wait_for_ready=True):
                    if table.loads_only:
                        self.loads = {host.name: host.load.running for host in table.hosts}
                    else:
                        self.tables.append(table)

    def names(self, state: int = pb.HOST_STATE_SERVING) -> list[str]:
        return [host.name for host in self.tables[-1].hosts if host.state == state] if self.tables else []

    async def load(self, name: str, **spec: str) -> list[str]:
        adapter = pb.AdapterSpec(name=name, path="/a", **spec)
        try:
            answer = await self.stub.LoadAdapter(pb.LoadAdapterRequest(adapter=adapter), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as e:
            raise from_rpc_error(e) from None
        return list(answer.hosts)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    with tempfile.TemporaryDirectory(prefix="vp") as folder:
        built = Router(Path(folder))
        await built.start()
        try:
            yield built
        finally:
            await built.stop()


@pytest.fixture
async def edge(router: Router) -> AsyncIterator[Edge]:
    async with open_channel(router.settings.router.address, router.settings.grpc) as channel:
        built = Edge(channel)
        try:
            yield built
        finally:
            await built.close()


@pytest.fixture
async def start_host(router: Router) -> AsyncIterator[Callable[..., Awaitable[Host]]]:
    hosts: list[Host] = []

    async def start(name: str, incarnation: str = "1") -> Host:
        host = Host(router, name, incarnation)
        hosts.append(host)
        host.start()
        await eventually(lambda: host.registration.connected, f"{name} registered")
        return host

    try:
        yield start
    finally:
        for host in hosts:
            await host.crash()


StartHost = Callable[..., Awaitable[Host]]


async def test_host_appears_leaves_at_once_when_its_stream_breaks_and_returns(
    edge: Edge, start_host: StartHost
) -> None:
    host = await start_host("h1")
    await eventually(lambda: edge.names() == ["h1"], "h1 in the table")
    broke_at = time.monotonic()
    await host.crash()
    await eventually(lambda: edge.names() == [], "h1 out of the table")
    assert time.monotonic() - broke_at < 1.0
    assert edge.tables[-1].absent_models == ["base"]
    await start_host("h1", "2")
    await eventually(lambda: edge.names() == ["h1"] and not edge.tables[-1].absent_models, "h1 back")
    assert edge.tables[-1].hosts[0].incarnation == "h1-2"


async def test_versions_grow_and_load_is_pushed(edge: Edge, start_host: StartHost) -> None:
    host = await start_host("h1")
    await eventually(lambda: edge.names() == ["h1"], "h1 in the table")
    host.report.load.running = 7
    await eventually(lambda: edge.loads == {"h1": 7}, "load pushed")
    host.report.state = pb.HOST_STATE_DRAINING
    await eventually(lambda: edge.names(pb.HOST_STATE_DRAINING) == ["h1"], "state pushed")
    versions = [table.version for table in edge.tables]
    assert versions == sorted(set(versions))
    assert all(table.hosts for table in edge.tables[1:]), "the host was out of the table in between"


async def test_poke_reports_soon_and_a_stopping_host_says_so(edge: Edge, start_host: StartHost) -> None:
    host = await start_host("h1")
    await eventually(lambda: edge.names() == ["h1"], "h1 in the table")
    host.report.state = pb.HOST_STATE_DRAINING
    host.registration.poke()
    await eventually(lambda: edge.names(pb.HOST_STATE_DRAINING) == ["h1"], "h1 drains")
    await host.stop()
    await eventually(lambda: not edge.tables[-1].hosts, "h1 gone")


async def test_last_report_arrives_before_the_stream_ends(edge: Edge, start_host: StartHost) -> None:
    host = await start_host("h1")
    await eventually(lambda: edge.names() == ["h1"], "h1 in the table")
    await host.stop()
    hosts = (await edge.stub.ListHosts(pb.ListHostsRequest(), timeout=DEADLINE_S)).hosts
    assert [(h.name, h.state) for h in hosts] == [("h1", pb.HOST_STATE_DOWN)]


async def test_adapter_is_loaded_on_every_host_and_on_one_that_comes_later(edge: Edge, start_host: StartHost) -> None:
    hosts = [await start_host("h1"), await start_host("h2")]
    await eventually(lambda: edge.names() == ["h1", "h2"], "both in the table")
    assert await edge.load("pirate") == ["h1", "h2"]
    assert all(host.adapters == {"pirate"} for host in hosts)
    with pytest.raises(AdapterExists):
        await edge.load("pirate")
    late = await start_host("h3")
    await eventually(lambda: late.adapters == {"pirate"}, "replayed to h3")
    await edge.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="pirate"), timeout=DEADLINE_S)
    assert not any(host.adapters for host in [*hosts, late])


async def test_failing_host_is_named_and_the_others_are_rolled_back(edge: Edge, start_host: StartHost) -> None:
    good, bad = await start_host("h1"), await start_host("h2")
    bad.broken = "its rank is too high"
    with pytest.raises(InvalidAdapter, match=r"h2.*rank is too high") as caught:
        await edge.load("pirate")
    assert caught.value.metadata["host"] == "h2"
    assert not good.adapters
    assert [command.WhichOneof("action") for command in good.commands] == ["load", "unload"]


async def test_router_restart_keeps_the_table_and_the_declarations(
    router: Router, edge: Edge, start_host: StartHost
) -> None:
    host = await start_host("h1")
    await eventually(lambda: edge.names() == ["h1"], "h1 in the table")
    await edge.load("pirate")
    await eventually(lambda: len(edge.tables[-1].hosts[0].models) == 2, "adapter in the table")
    seen = len(edge.tables)
    await router.stop()
    await router.start()
    await eventually(lambda: host.registration.connected and len(edge.tables) > seen, "host and edge are back")
    await host.crash()
    restarted = await start_host("h1", "2")
    await eventually(lambda: restarted.adapters == {"pirate"}, "replayed from the store")
    before_crash = [t for t in edge.tables[seen:] if "h1-2" not in str(t)]
    assert [h.name for h in before_crash[0].hosts] == ["h1"], "the restarted router blanked the table"
    assert edge.tables[seen].version > edge.tables[seen - 1].version


async def test_policy_and_mapping_follow_the_configuration(router: Router, edge: Edge, start_host: StartHost) -> None:
    await start_host("h1")
    await eventually(lambda: edge.names() == ["h1"], "h1 in the table")
    good = "engine_hosts: {h1: {engine: sim}}\nrouter: {policy: round_robin}\nmodel_backend_mapping: {base: sim}\n"
    router.configure(good)
    await eventually(lambda: edge.tables[-1].policy == "round_robin", "the new policy is pushed")
    assert dict(edge.tables[-1].model_backend_mapping) == {"base": "sim"}
    router.configure(good.replace("base: sim", "base: sglang"))
    router.configure(good.replace("round_robin", "least_loaded"))
    await eventually(lambda: edge.tables[-1].policy == "least_loaded", "the next good one is pushed")
    assert dict(edge.tables[-1].model_backend_mapping) == {"base": "sim"}


async def test_people_see_hosts_models_and_declarations(edge: Edge, start_host: StartHost) -> None:
    for name in ("h1", "h2"):
        await start_host(name)
    await edge.load("pirate")
    models = (await edge.stub.ListModels(pb.ListModelsRequest(), timeout=DEADLINE_S)).models
    assert [(row.model.name, list(row.hosts)) for row in models] == [("base", ["h1", "h2"]), ("pirate", ["h1", "h2"])]
    (declared,) = (await edge.stub.ListAdapters(pb.ListAdaptersRequest(), timeout=DEADLINE_S)).adapters
    assert (declared.adapter.name, declared.adapter.base, list(declared.loaded_on)) == ("pirate", "base", ["h1", "h2"])
    picked = await edge.stub.Pick(pb.PickRequest(model="pirate"), timeout=DEADLINE_S)
    assert picked.host.name in ("h1", "h2")


async def test_unexpected_fault_of_a_command_stays_in_the_hosts_log(edge: Edge, start_host: StartHost) -> None:
    host = await start_host("h1")

    async def fail(command: pb.Command) -> None:
        raise RuntimeError("a secret")

    host.registration._execute = fail
    with pytest.raises(ServiceError) as caught:
        await edge.load("pirate")
    assert caught.value.reason == "INTERNAL"
    assert "a secret" not in caught.value.message
