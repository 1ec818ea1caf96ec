"""Start, drain, death: what the host refuses, what it waits for, how it exits."""

import asyncio
import logging
import socket
import time
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.wait import eventually
from tests.unit.engine_host.rig import Rig, ScriptedEngine, chat, hang

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.common.v1 import maintenance_pb2, maintenance_pb2_grpc
from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.errors import EngineUnavailable, ModelNotFound, RouteNotFound
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings, Sim
from vllm_proxy.engine_host.config import host_config
from vllm_proxy.engine_host.engines.sim import SimEngine


async def _health(rig: Rig) -> int:
    answer = await health_pb2_grpc.HealthStub(rig.channel).Check(
        health_pb2.HealthCheckRequest(service="vllm_proxy.api.engine.v1.EngineService"), wait_for_ready=True
    )
    return int(answer.status)


async def test_it_listens_at_once_and_serves_when_the_engine_does() -> None:
    def slow() -> ScriptedEngine:
        engine = ScriptedEngine(hang)
        engine.may_start.clear()
        return engine

    async with Rig(slow) as rig:
        assert await _health(rig) == health_pb2.HealthCheckResponse.NOT_SERVING
        status = await rig.stub.GetStatus(pb.GetStatusRequest())
        assert status.host.state == router_pb2.HOST_STATE_STARTING
        edge = await rig.edge()
        (refused,) = await edge.ended(await edge.start())
        assert refused.end is not None
        assert refused.end.reason == "ENGINE_UNAVAILABLE"
        assert isinstance(rig.service.engine, ScriptedEngine)
        rig.service.engine.may_start.set()
        await rig.serving()
        assert await eventually(lambda: _health(rig), "healthy") == health_pb2.HealthCheckResponse.SERVING
        status = await rig.stub.GetStatus(pb.GetStatusRequest())
        assert [m.name for m in status.host.models] == ["m"]


async def test_a_stop_while_the_engine_starts() -> None:
    def never() -> ScriptedEngine:
        engine = ScriptedEngine(hang)
        engine.may_start.clear()
        return engine

    async with Rig(never) as rig:
        await _health(rig)
        rig.stop.request()
        assert await rig.exit == 0
        assert isinstance(rig.service.engine, ScriptedEngine)
        assert rig.service.engine.stopped


async def test_an_engine_that_cannot_start() -> None:
    def broken() -> ScriptedEngine:
        engine = ScriptedEngine(hang)
        engine.death.set_result("no such model")
        return engine

    async with Rig(broken) as rig:
        assert await rig.exit == 1


async def test_a_stop_waits_for_running_requests_and_refuses_new_ones() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        running = await edge.start(chat(max_tokens=150))
        await eventually(lambda: edge.answers[running].data, "it runs")
        rig.stop.request()
        await eventually(lambda: rig.service.host.state_name == "DRAINING", "draining")
        (refused,) = await edge.ended(await edge.start(chat()))
        (answer,) = await edge.ended(running)
        assert refused.end is not None and answer.end is not None
        assert refused.end.reason == "ENGINE_UNAVAILABLE"
        assert answer.end.outcome == auth_pb2.OUTCOME_FINISHED
        assert answer.data.endswith(b"data: [DONE]\n\n")
        assert await rig.exit == 0


async def test_a_dead_engine_fails_its_requests_and_ends_the_host_within_two_seconds() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        edge = await rig.edge()
        streams = [await edge.start(lease_id=f"l{n}") for n in range(3)]
        await eventually(lambda: all(edge.answers[s].data for s in streams), "they run")
        engine = rig.service.engine
        assert isinstance(engine, ScriptedEngine)
        died_at = time.monotonic()
        engine.death.set_result("out of memory")
        for answer in await edge.ended(*streams):
            assert answer.end is not None
            assert (answer.end.reason, answer.end.outcome) == ("ENGINE_FAILED", auth_pb2.OUTCOME_FAILED)
        assert await rig.exit == 1
        assert time.monotonic() - died_at < 2
        assert engine.stopped
        assert sorted(s.lease_id for s in rig.auth.settled) == ["l0", "l1", "l2"], "nobody acknowledged them"


async def test_an_engine_that_dies_while_the_host_drains() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start()
        await eventually(lambda: edge.answers[stream].data, "it runs")
        rig.stop.request()
        await eventually(lambda: rig.service.host.state_name == "DRAINING", "draining")
        assert isinstance(rig.service.engine, ScriptedEngine)
        rig.service.engine.death.set_result("out of memory")
        (answer,) = await edge.ended(stream)
        assert answer.end is not None
        assert answer.end.reason == "ENGINE_FAILED"
        assert await rig.exit == 1


async def test_the_router_hears_of_every_state() -> None:
    def slow() -> ScriptedEngine:
        engine = ScriptedEngine(hang)
        engine.may_start.clear()
        return engine

    async with Rig(slow) as rig:
        await eventually(lambda: rig.router.states() == ["STARTING"], "registered at once")
        assert isinstance(rig.service.engine, ScriptedEngine)
        rig.service.engine.may_start.set()
        await eventually(lambda: rig.router.states()[-1] == "SERVING", "reported before the next heartbeat", 0.7)
        edge = await rig.edge()
        stream = await edge.start()
        await eventually(lambda: edge.answers[stream].data, "it runs")
        rig.stop.request()
        await eventually(lambda: rig.router.states()[-1] == "DRAINING", "reported while it drains", 0.7)
        rig.service.engine.death.set_result("out of memory")
        assert await rig.exit == 1
        assert rig.router.states() == ["STARTING", "SERVING", "DRAINING", "DOWN"]
        assert rig.router.reports[-1].detail == "out of memory"


async def test_a_fault_in_the_engines_start() -> None:
    class Faulty(ScriptedEngine):
        async def start(self) -> None:
            raise RuntimeError("unexpected")

    async with Rig(lambda: Faulty(hang)) as rig:
        assert await rig.exit == 1


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = SimEngine(Sim.model_validate({"http_port": port}))
        with pytest.raises(ConfigError, match=f"sim.http_port: {port}"):
            await engine.start()
        await engine.stop()


async def test_drain_by_rpc_and_back_by_the_router() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start(chat(max_tokens=100_000))
        await eventually(lambda: edge.answers[stream].data, "it runs")
        assert (await rig.stub.Drain(pb.DrainRequest(timeout_ms=50))).remaining == 1
        (refused,) = await edge.ended(await edge.start(chat()))
        assert refused.end is not None
        assert refused.end.reason == "ENGINE_UNAVAILABLE"
        await rig.service.host.execute(router_pb2.Command(drain=False))
        (answer,) = await edge.ended(await edge.start(chat()))
        assert answer.end is not None
        assert answer.end.outcome == auth_pb2.OUTCOME_FINISHED


async def test_abort_by_request_id() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start(chat(max_tokens=100_000), request_id="stop-me")
        await eventually(lambda: edge.answers[stream].data, "it runs")
        assert not (await rig.stub.Abort(pb.AbortRequest(request_id="other"))).found
        assert (await rig.stub.Abort(pb.AbortRequest(request_id="stop-me"))).found
        (answer,) = await edge.ended(stream)
        assert answer.end is not None
        assert answer.end.outcome == auth_pb2.OUTCOME_CANCELLED
        assert "operator" in answer.end.message


async def test_infer_streams_one_answer() -> None:
    async with Rig() as rig:
        await rig.serving()
        envelope = pb.RequestEnvelope(method="POST", path="/v1/completions", lease_id="l")
        request = pb.InferRequest(envelope=envelope, body=b'{"model":"sim","prompt":"x","max_tokens":3}')
        parts = [part async for part in rig.stub.Infer(request)]
        assert [part.WhichOneof("event") for part in parts] == ["head", "data", "end"]
        assert parts[-1].end.usage.completion_tokens == 3
        await eventually(lambda: rig.auth.settled, "nobody else would settle it")
        envelope.path = "/invocations"
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await rig.stub.Infer(pb.InferRequest(envelope=envelope)).read()
        assert isinstance(from_rpc_error(e.value), RouteNotFound)


async def test_infer_ends_with_its_client() -> None:
    async with Rig() as rig:
        await rig.serving()
        envelope = pb.RequestEnvelope(method="POST", path="/v1/completions")
        body = b'{"model":"sim","prompt":"x","max_tokens":100000,"stream":true}'
        call = rig.stub.Infer(pb.InferRequest(envelope=envelope, body=body))
        await call.read()
        call.cancel()
        await eventually(lambda: rig.service.engine.load().running == 0, "the engine is free")


async def test_generate_counts_and_can_be_aborted() -> None:
    async with Rig() as rig:
        await rig.serving()
        request = pb.GenerateRequest(model="sim", prompt="hello", max_tokens=5)
        deltas = [delta async for delta in rig.stub.Generate(request)]
        assert sum(len(delta.token_ids) for delta in deltas) == 5
        assert deltas[-1].usage.completion_tokens == 5
        assert deltas[-1].finish_reason == "length"
        assert "simulated" in deltas[0].text
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await rig.stub.Generate(pb.GenerateRequest(model="other", prompt="x")).read()
        assert isinstance(from_rpc_error(e.value), ModelNotFound)
        call = rig.stub.Generate(pb.GenerateRequest(model="sim", prompt="x", max_tokens=100_000, request_id="g"))
        await call.read()
        await rig.stub.Abort(pb.AbortRequest(request_id="g"))
        with pytest.raises(grpc.aio.AioRpcError, match="operator"):
            while await call.read() is not grpc.aio.EOF:
                pass
        labels = {"route": "generate", "outcome": "cancelled", "reason": "INTERNAL"}
        registry = rig.service.metrics.registry
        assert registry.get_sample_value("vllm_proxy_engine_host_requests_total", labels) == 1
        await eventually(lambda: rig.service.engine.load().running == 0, "the engine is free")
        await rig.stub.Drain(pb.DrainRequest(timeout_ms=50))
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await rig.stub.Generate(request).read()
        assert type(from_rpc_error(e.value)) is EngineUnavailable


async def test_an_engine_without_lora_says_so() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        for call in (
            rig.stub.LoadAdapter(pb.LoadAdapterRequest(adapter=router_pb2.AdapterSpec(name="a", path="/a"))),
            rig.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="a")),
            rig.stub.PinAdapter(pb.PinAdapterRequest(name="a")),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="no LoRA"):
                await call
        assert not (await rig.stub.ListAdapters(pb.ListAdaptersRequest())).adapters


async def test_maintenance_and_metrics() -> None:
    async with Rig() as rig:
        await rig.serving()
        stub = maintenance_pb2_grpc.MaintenanceServiceStub(rig.channel)
        answer = await stub.GetEffectiveConfig(maintenance_pb2.GetEffectiveConfigRequest())
        assert "step_ms: 2" in answer.yaml
        edge = await rig.edge()
        await edge.ended(await edge.start(chat(max_tokens=7)))
        registry = rig.service.metrics.registry
        assert registry.get_sample_value("vllm_proxy_engine_host_tokens_total", {"kind": "completion"}) == 7
        labels = {"route": "chat_completions", "outcome": "finished", "reason": ""}
        assert registry.get_sample_value("vllm_proxy_engine_host_requests_total", labels) == 1
        assert registry.get_sample_value("vllm_proxy_engine_host_sessions") == 1


async def test_one_line_in_the_log_for_each_request_and_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        await edge.ended(
            await edge.start(chat(max_tokens=3), request_id="r-1", key_id="abc", model="sim"),
            await edge.start(path="/invocations", request_id="r-2"),
        )
    fields = [vars(r)["fields"] for r in caplog.records if r.getMessage() == "request"]
    lines = {line["request_id"]: line for line in fields}
    assert lines.keys() == {"r-1", "r-2"}
    served, refused = lines["r-1"], lines["r-2"]
    assert (served["key_id"], served["model"], served["status"], served["edge"]) == ("abc", "sim", 200, "edge-1")
    assert (served["outcome"], served["reason"], served["completion_tokens"]) == ("finished", "", 3)
    assert 0 < served["ttft_ms"] <= served["duration_ms"]
    assert (refused["outcome"], refused["reason"], refused["status"]) == ("not_sent", "ROUTE_NOT_FOUND", None)
    assert not any("Count the tokens" in str(value) for value in served.values())


async def test_a_failed_part_ends_the_host() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        (task,) = [t for t in asyncio.all_tasks() if t.get_name() == "settler"]
        task.cancel()
        assert await rig.exit == 1


def test_an_unknown_name() -> None:
    settings = Settings.model_validate({"engine_hosts": {"a": {"engine": "sglang"}}})
    loaded = LoadedSettings(settings, Path("c.yaml"), Path())
    with pytest.raises(ConfigError, match="--name b"):
        host_config(loaded, "b")
    assert host_config(loaded, "a").engine == "sglang"
