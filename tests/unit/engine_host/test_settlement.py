"""Who settles: acknowledged ends are forgotten, a broken session's are settled by the host until it is durable."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.wait import eventually
from tests.unit.engine_host.rig import Rig, ScriptedEngine, chat, hang

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE, Grpc
from vllm_proxy.engine_host.settlement import End, Settler, UnacknowledgedEnds


def _end(lease_id: str) -> End:
    return End(lease_id, 1, auth_pb2.OUTCOME_FINISHED, 3, 0, 4, "sim", "h1")


async def test_an_acknowledged_end_is_forgotten() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        streams = [await edge.start(chat(), lease_id=f"l{n}") for n in range(3)]
        await edge.ended(*streams)
        await edge.send(end_acks=streams[:2])
        # A later request's end comes after the acknowledgements were read.
        await edge.ended(await edge.start(chat()))
        await edge.leave()
        await eventually(lambda: rig.auth.settled, "the host settles")
        await eventually(lambda: len(rig.service.settler) == 0, "all durable")
        assert [s.lease_id for s in rig.auth.settled] == ["l2"], "not the acknowledged ones, not the one without lease"
        (settlement,) = rig.auth.settled
        assert settlement.source == auth_pb2.SOURCE_HOST
        assert settlement.outcome == auth_pb2.OUTCOME_FINISHED
        assert settlement.usage.completion_tokens == 4
        assert (settlement.host, settlement.attempt) == ("h1", 1)
        assert rig.auth.hellos[0].source == auth_pb2.SOURCE_HOST


async def test_a_broken_session_aborts_and_settles_what_ran() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        streams = [await edge.start(chat(max_tokens=100_000), lease_id=f"l{n}", attempt=2) for n in range(5)]
        await eventually(lambda: all(edge.answers[s].counts for s in streams), "tokens")
        seen = {f"l{n}": edge.answers[s].counts[-1][1] for n, s in enumerate(streams)}
        await edge.leave()
        await eventually(lambda: rig.service.engine.load().running == 0, "aborted", 0.5)
        await eventually(lambda: len(rig.auth.settled) == 5, "settled")
        for settlement in rig.auth.settled:
            assert settlement.outcome == auth_pb2.OUTCOME_CANCELLED
            assert settlement.attempt == 2
            assert settlement.usage.completion_tokens >= seen[settlement.lease_id]


async def test_settling_survives_a_restart_of_the_auth_service() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        rig.auth.silent = True
        edge = await rig.edge()
        await edge.start(lease_id="a")
        await edge.leave()
        await eventually(lambda: rig.auth.settled, "sent once, never acknowledged")
        await rig.auth.stop()
        other = await rig.edge("edge-2")
        await other.start(lease_id="b")
        await other.leave()
        await eventually(lambda: len(rig.service.settler) == 2, "both wait")
        rig.auth.silent = False
        rig.auth.settled.clear()
        await rig.auth.start()
        await eventually(lambda: len(rig.service.settler) == 0, "durable after the restart")
        assert sorted(s.lease_id for s in rig.auth.settled) == ["a", "b"]


async def test_a_stop_flushes_what_is_unsettled() -> None:
    async with Rig(lambda: ScriptedEngine(hang), engine_host={"drain_timeout_s": 0.1}) as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start(lease_id="l")
        await eventually(lambda: edge.answers[stream].data, "it runs")
        rig.stop.request()
        assert await rig.exit == 0
        assert [s.lease_id for s in rig.auth.settled] == ["l"]
        (answer,) = await edge.ended(stream)
        assert answer.end is not None
        assert answer.end.reason == "NO_CAPACITY"


async def test_books_are_bounded() -> None:
    async with Rig() as rig:
        settler = Settler(rig.settings.auth.address, rig.settings.grpc, "owner", limit=3)
        ends = UnacknowledgedEnds(2, settler)
        for n in range(4):
            ends.add(n, _end(f"l{n}"))
        ends.add(9, _end(""))
        assert (len(ends), len(settler)) == (2, 2), "the oldest go to the settler"
        ends.acknowledge([3, 77])
        ends.session_broke()
        ends.add(5, _end("late"))
        assert (len(ends), len(settler)) == (0, 3), "and beyond its limit the oldest is given up"
        task = asyncio.create_task(settler.run())
        assert await settler.flush(5) == 0
        assert {"l1", "l2", "late"} <= {s.lease_id for s in rig.auth.settled}
        task.cancel()
        await asyncio.wait((task,))


async def test_a_cancellation_while_a_session_opens_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERNAL_TOKEN_VARIABLE, "secret")
    settler = Settler(f"unix:{tmp_path}/nobody.sock", Grpc(), "owner", limit=3)
    opening = asyncio.Event()
    session = Settler._session

    async def announced(self: Settler, stub: Any) -> None:
        opening.set()
        await session(self, stub)

    monkeypatch.setattr(Settler, "_session", announced)
    settler.submit([_end("l")])
    task = asyncio.create_task(settler.run())
    await opening.wait()
    task.cancel()
    await asyncio.wait((task,), timeout=10)
    assert task.cancelled()


async def test_settling_outlives_an_absent_auth_service_also_with_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERNAL_TOKEN_VARIABLE, "secret")
    tries = []
    session = Settler._session

    async def counted(self: Settler, stub: Any) -> None:
        tries.append(stub)
        await session(self, stub)

    monkeypatch.setattr(Settler, "_session", counted)
    settler = Settler(
        f"unix:{tmp_path}/nobody.sock", Grpc(reconnect_min_s=0.01, reconnect_max_s=0.02), "owner", limit=3
    )
    settler.submit([_end("l")])
    task = asyncio.create_task(settler.run())
    await eventually(lambda: len(tries) >= 3 or task.done(), "it tries again")
    assert not task.done()
    assert len(settler) == 1
    task.cancel()
    await asyncio.wait((task,))
