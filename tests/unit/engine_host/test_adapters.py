"""Adapters through the whole host: the registry, the engine, the report to the router."""

from pathlib import Path

import grpc.aio
import pytest
from tests.support.adapter_files import write_adapter
from tests.support.wait import eventually
from tests.unit.engine_host.rig import Rig, chat

from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.errors import AdapterExists, AdapterNotFound, EngineUnavailable, InvalidAdapter
from vllm_proxy.common.rpc.status import from_rpc_error


def lora(folder: Path) -> dict[str, object]:
    resolver = {"cache_dir": str(folder / "cache"), "allow_runtime_updates": True}
    return {"lora": {"allowed_roots": [str(folder)], "runtime_resolver": resolver}}


async def test_load_use_report_unload(tmp_path: Path) -> None:
    write_adapter(tmp_path / "pirate")
    spec = router_pb2.AdapterSpec(name="pirate", path=str(tmp_path / "pirate"))
    async with Rig(vllm=lora(tmp_path)) as rig:
        await rig.serving()
        loaded = await rig.stub.LoadAdapter(pb.LoadAdapterRequest(adapter=spec))
        assert (loaded.model.name, loaded.model.base) == ("pirate", "sim")
        assert len(loaded.model.digest) == 64
        edge = await rig.edge()
        (answer,) = await edge.ended(await edge.start(chat("pirate", stream=False)))
        assert answer.json["choices"][0]["message"]["content"].startswith("[simulated by pirate]")
        report = await rig.service.host.snapshot()
        assert [(m.name, m.origin) for m in report.models] == [
            ("sim", router_pb2.ADAPTER_ORIGIN_UNSPECIFIED),
            ("pirate", router_pb2.ADAPTER_ORIGIN_NATIVE),
        ]
        await rig.stub.PinAdapter(pb.PinAdapterRequest(name="pirate"))
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await rig.stub.LoadAdapter(pb.LoadAdapterRequest(adapter=spec))
        assert isinstance(from_rpc_error(e.value), AdapterExists)
        await rig.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="pirate"))
        assert not (await rig.stub.ListAdapters(pb.ListAdaptersRequest())).adapters
        (answer,) = await edge.ended(await edge.start(chat("pirate")))
        assert answer.head is not None
        assert answer.head.status == 404


async def test_the_routers_commands(tmp_path: Path) -> None:
    write_adapter(tmp_path / "poet")
    async with Rig(vllm=lora(tmp_path)) as rig:
        host = rig.service.host
        load = router_pb2.Command(load=router_pb2.AdapterSpec(name="poet", path=str(tmp_path / "poet"), base="sim"))
        await rig.serving()
        await host.execute(load)
        assert [m.origin for m in await host.models()][1:] == [router_pb2.ADAPTER_ORIGIN_DECLARED]
        await host.execute(router_pb2.Command(unload="poet"))
        with pytest.raises(AdapterNotFound):
            await host.execute(router_pb2.Command(unload="poet"))
        with pytest.raises(InvalidAdapter):
            await host.execute(router_pb2.Command(load=router_pb2.AdapterSpec(name="x", path=str(tmp_path / "none"))))
        assert host.take_withdrawn() == [], "the router asked for it itself"
        rig.stop.request()
        await rig.exit
        await rig.service.host.engine_died("gone")
        with pytest.raises(EngineUnavailable):
            await host.execute(load)


async def test_an_adapter_in_the_resolvers_folder_is_found_at_its_first_request(tmp_path: Path) -> None:
    write_adapter(tmp_path / "cache" / "dropped-in")
    async with Rig(vllm=lora(tmp_path)) as rig:
        await rig.serving()
        edge = await rig.edge()
        (answer,) = await edge.ended(await edge.start(chat("dropped-in", stream=False)))
        assert answer.json["choices"][0]["message"]["content"].startswith("[simulated by dropped-in]")
        (row,) = (await rig.stub.ListAdapters(pb.ListAdaptersRequest())).adapters
        assert row.origin == router_pb2.ADAPTER_ORIGIN_RESOLVED
        await eventually(lambda: rig.service.engine.load().running == 0, "idle")
