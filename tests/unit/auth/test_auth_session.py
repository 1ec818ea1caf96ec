"""The service over a real gRPC connection: a Unix socket, a store whose commits the test decides over."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.unit.auth.fakes import Desk, MemoryStore, api_key, servicer_of

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.auth import session as session_module
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.lease import Outcome, Settlement, Source, Usage
from vllm_proxy.auth.limits import KeyRules, LimitOverrides, Limits
from vllm_proxy.auth.servicer import SERVICE_NAME
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import Grpc

DEADLINE_S = 20


class Service:
    def __init__(self, folder: Path, desk: Desk) -> None:
        self.desk = desk
        self.store = MemoryStore()
        self.keys_file = folder / "api_keys.json"
        self.servicer = servicer_of(desk, self.store, self.keys_file)
        self.rpc = RpcServer(f"unix:{folder}/a.sock", Grpc(), [SERVICE_NAME])
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self.servicer, self.rpc.server)
        self.channel = grpc.aio.insecure_channel(self.rpc.address)
        self.stub = auth_pb2_grpc.AuthServiceStub(self.channel)

    async def session(self, owner: str = "edge-1", first: pb.SessionRequest | None = None) -> Any:
        call = self.stub.Session(timeout=DEADLINE_S)
        message = first or pb.SessionRequest()
        message.hello.owner_id = owner
        await call.write(message)
        greeting = await call.read()
        assert greeting.lease_ttl_ms == 30_000 and not greeting.admits and not greeting.settles
        return call

    def ask(self, seq: int, **wishes: Any) -> pb.AdmitRequest:
        wishes = {"operation": pb.OPERATION_INFERENCE, "prompt_tokens_estimate": 10, "response_tokens": 90} | wishes
        return pb.AdmitRequest(seq=seq, api_key_sha256=self.desk.key.digest, request_id=f"r{seq}", model="m", **wishes)


def truth(seq: int, lease_id: str, *, completion: int = 5, **more: Any) -> pb.SettleRequest:
    usage = pb.TokenUsage(prompt_tokens=10, cached_tokens=2, completion_tokens=completion)
    return pb.SettleRequest(
        seq=seq, lease_id=lease_id, attempt=1, outcome=pb.OUTCOME_FINISHED, usage=usage, model="m", host="h", **more
    )


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    # A Unix socket's path may have 107 bytes; pytest's own folders can be longer.
    folder = Path(tempfile.mkdtemp(prefix="auth"))
    running = Service(folder, Desk(api_key("alice", quota=1_000_000), limits=Limits(qps=1000, tokens_per_minute=10**6)))
    await running.rpc.listen()
    yield running
    await running.channel.close()
    await running.rpc.stop(0)
    shutil.rmtree(folder)


async def test_admit_and_settle(service: Service) -> None:
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(7)]))
    (admitted,) = (await call.read()).admits
    assert admitted.seq == 7 and admitted.admitted and admitted.user == "alice"
    assert admitted.key_id == service.desk.key.key_id and admitted.reserved_tokens == 100
    assert (admitted.requests.limit, admitted.requests.remaining) == (1000, 999)
    assert admitted.tokens.remaining == 10**6 - 100 and admitted.quota_remaining == 10**6 - 100
    assert not admitted.reason and not admitted.HasField("retry_after_ms")
    await call.write(pb.SessionRequest(settles=[truth(8, admitted.lease_id)]))
    (settled,) = (await call.read()).settles
    assert settled.seq == 8 and settled.applied
    assert service.desk.used() == 15 and service.desk.account().balance().cached_tokens == 2


async def test_the_first_message_may_carry_requests_too(service: Service) -> None:
    call = await service.session(first=pb.SessionRequest(admits=[service.ask(1)]))
    assert (await call.read()).admits[0].admitted


async def test_every_answer_has_its_number_and_admissions_keep_their_order(service: Service) -> None:
    call = await service.session()
    numbers = list(range(1, 3001))
    for begin in range(0, len(numbers), 500):
        await call.write(pb.SessionRequest(admits=[service.ask(seq) for seq in numbers[begin : begin + 500]]))
    answered: list[pb.AdmitResponse] = []
    while len(answered) < len(numbers):
        answered += (await call.read()).admits
    assert [answer.seq for answer in answered if answer.admitted] == numbers[:1000]
    assert sorted(answer.seq for answer in answered) == numbers
    refused = [answer for answer in answered if not answer.admitted]
    assert {(answer.limit_name, answer.retry_after_ms) for answer in refused} == {("requests_per_second", 1)}


async def test_nothing_is_answered_before_it_is_durable_but_refusals_do_not_wait(service: Service) -> None:
    service.store.hold = True
    call = await service.session()
    stranger = pb.AdmitRequest(seq=2, api_key_sha256=b"x" * 32, operation=pb.OPERATION_READ)
    reader = service.ask(3, operation=pb.OPERATION_READ)
    await call.write(pb.SessionRequest(admits=[service.ask(1), stranger, reader]))
    first = await call.read()
    assert [(answer.seq, answer.reason) for answer in first.admits] == [(2, "INVALID_API_KEY"), (3, "")]
    (group,) = service.store.groups
    assert len(group) == 1
    service.store.release()
    assert [answer.seq for answer in (await call.read()).admits] == [1]


async def test_a_message_is_one_group_of_records(service: Service) -> None:
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(seq) for seq in range(50)]))
    leases = [answer.lease_id for answer in (await call.read()).admits]
    await call.write(
        pb.SessionRequest(settles=[truth(seq, lease) for seq, lease in enumerate(leases)], admits=[service.ask(99)])
    )
    response = await call.read()
    assert len(response.settles) == 50 and len(response.admits) == 1
    assert [len(group) for group in service.store.groups] == [50, 51]


async def test_what_piles_up_during_a_write_goes_out_as_one_message(service: Service) -> None:
    call = await service.session()
    service.store.hold = True
    for seq in range(20):
        await call.write(pb.SessionRequest(admits=[service.ask(seq)]))
    # A refusal that comes back says that everything before it was read.
    await call.write(pb.SessionRequest(admits=[pb.AdmitRequest(seq=99, api_key_sha256=b"x" * 32)]))
    assert (await call.read()).admits[0].seq == 99
    service.store.release()
    assert [answer.seq for answer in (await call.read()).admits] == list(range(20))


async def test_a_repeated_settlement_waits_for_the_first_ones_records(service: Service) -> None:
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(1)]))
    lease = (await call.read()).admits[0].lease_id
    service.store.hold = True
    await call.write(pb.SessionRequest(settles=[truth(2, lease)]))
    await call.write(pb.SessionRequest(settles=[truth(3, lease)], admits=[service.ask(4, operation=pb.OPERATION_READ)]))
    response = await call.read()
    assert [answer.seq for answer in response.admits] == [4] and not response.settles
    service.store.release()
    assert [(answer.seq, answer.applied) for answer in (await call.read()).settles] == [(2, True), (3, True)]
    assert service.desk.used() == 15


async def test_settlements_free_room_for_the_admissions_beside_them(service: Service) -> None:
    service.desk.limit(Limits(concurrent=1))
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(1)]))
    lease = (await call.read()).admits[0].lease_id
    await call.write(pb.SessionRequest(settles=[truth(2, lease)], admits=[service.ask(3)]))
    assert (await call.read()).admits[0].admitted


async def test_renewal_is_for_the_sessions_own_leases(service: Service) -> None:
    mine, theirs = await service.session("edge-1"), await service.session("edge-2")
    await mine.write(pb.SessionRequest(admits=[service.ask(1)]))
    lease = (await mine.read()).admits[0].lease_id
    service.desk.clock.advance(20)
    await theirs.write(pb.SessionRequest(renew_lease_ids=[lease], settles=[truth(1, "none")]))
    await theirs.read()
    await mine.write(pb.SessionRequest(renew_lease_ids=[lease], settles=[truth(1, "none")]))
    assert not (await mine.read()).settles[0].applied
    (shown,) = (await service.stub.ListLeases(pb.ListLeasesRequest())).leases
    assert shown.expires_at_ms - shown.opened_at_ms == 50_000
    assert (shown.lease_id, shown.owner_id, shown.request_id, shown.reserved_tokens) == (lease, "edge-1", "r1", 100)


async def test_an_unfinished_settlement_is_settled_over_the_next_session(service: Service) -> None:
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(1)]))
    lease = (await call.read()).admits[0].lease_id
    service.store.hold = True
    await call.write(pb.SessionRequest(settles=[truth(2, lease)], admits=[service.ask(3, operation=pb.OPERATION_READ)]))
    await call.read()
    call.cancel()
    service.store.hold = False
    service.store.release()
    again = await service.session()
    await again.write(pb.SessionRequest(settles=[truth(1, lease)]))
    assert (await again.read()).settles[0].applied
    assert service.desk.used() == 15 and service.desk.account().running == 0


async def test_a_session_that_breaks_leaves_its_owner_absent(service: Service) -> None:
    call = await service.session("edge-1")
    await call.write(pb.SessionRequest(admits=[service.ask(1)]))
    lease = (await call.read()).admits[0].lease_id
    host = await service.session("host-1")
    await host.write(pb.SessionRequest(settles=[truth(1, lease, source=pb.SOURCE_HOST, completion=50)]))
    assert (await host.read()).settles[0].applied
    assert service.desk.used() == 0
    call.cancel()
    async with asyncio.timeout(DEADLINE_S):
        while "edge-1" in service.desk.admission.book.owners._sessions:
            await service.stub.ListLeases(pb.ListLeasesRequest())
    service.desk.clock.advance(2)
    assert service.desk.admission.tick()
    assert service.desk.used() == 60


async def test_closing_ones_side_still_brings_the_answers(service: Service) -> None:
    service.store.hold = True
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(1)]))
    await call.done_writing()
    async with asyncio.timeout(DEADLINE_S):
        while not service.store.held:
            await service.stub.ListLeases(pb.ListLeasesRequest())
    service.store.release()
    assert (await call.read()).admits[0].admitted
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_draining_answers_what_was_read_and_then_ends(service: Service) -> None:
    service.store.hold = True
    idle, call = await service.session("edge-2"), await service.session("edge-1")
    await call.write(pb.SessionRequest(admits=[service.ask(1), service.ask(2, operation=pb.OPERATION_READ)]))
    assert (await call.read()).admits[0].seq == 2
    service.servicer.drain()
    assert await idle.read() is grpc.aio.EOF
    service.store.release()
    assert (await call.read()).admits[0].seq == 1
    assert await call.read() is grpc.aio.EOF
    # It says nothing first: a write to a call that has just ended can fail with a status of its own, INTERNAL.
    late = service.stub.Session(timeout=DEADLINE_S)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await late.read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_session_begins_with_a_name(service: Service) -> None:
    call = service.stub.Session(timeout=DEADLINE_S)
    await call.write(pb.SessionRequest(admits=[service.ask(1)]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert from_rpc_error(refused.value).reason == "INVALID_REQUEST"
    assert service.desk.account().running == 0


async def test_a_peer_that_does_not_read_is_not_read_from(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_MAX_BACKLOG", 10)
    call = await service.session()
    total = 20_000
    message = pb.SessionRequest(admits=[service.ask(0, operation=pb.OPERATION_READ)] * 100)
    writing = asyncio.create_task(_write_many(call, message, total // 100))
    answered = 0
    while answered < total:
        answered += len((await call.read()).admits)
    await writing


async def _write_many(call: Any, message: pb.SessionRequest, times: int) -> None:
    for _ in range(times):
        await call.write(message)


# The unary forms


async def test_the_unary_forms(service: Service) -> None:
    admitted = await service.stub.Admit(service.ask(5, owner_id="tool"))
    assert admitted.admitted and admitted.seq == 5
    refused = await service.stub.Admit(pb.AdmitRequest(seq=6, api_key_sha256=b"", operation=pb.OPERATION_READ))
    assert not refused.admitted and refused.reason == "INVALID_API_KEY"
    settled = await service.stub.Settle(truth(7, admitted.lease_id, source=pb.SOURCE_TOOL))
    assert settled.seq == 7 and settled.applied
    with pytest.raises(grpc.aio.AioRpcError) as nameless:
        await service.stub.Settle(pb.SettleRequest())
    assert from_rpc_error(nameless.value).reason == "INVALID_REQUEST"


async def test_refusals_carry_the_numbers(service: Service) -> None:
    service.desk.limit(Limits(tokens_per_minute=100))
    await service.stub.Admit(service.ask(1))
    refused = await service.stub.Admit(service.ask(2))
    assert (refused.reason, refused.limit_name) == ("RATE_LIMITED", "tokens_per_minute")
    assert refused.retry_after_ms == 60_000 and "100 tokens per minute" in refused.message
    assert (refused.tokens.limit, refused.tokens.remaining, refused.tokens.reset_ms) == (100, 0, 60_000)
    assert not refused.HasField("requests")


async def test_keys_are_listed_with_what_they_used_and_without_their_secret(service: Service) -> None:
    admitted = await service.stub.Admit(service.ask(1))
    second = await service.stub.Admit(service.ask(2))
    await service.stub.Settle(truth(3, admitted.lease_id))
    (key,) = (await service.stub.ListKeys(pb.ListKeysRequest())).keys
    assert (key.user, key.enabled, key.quota) == ("alice", True, 1_000_000)
    assert (key.prompt_tokens, key.completion_tokens, key.requests) == (10, 5, 1)
    assert (key.running, key.reserved_tokens) == (1, 100) and second.admitted


async def test_reloading_keys(service: Service) -> None:
    service.keys_file.write_text('{"keys": [{"key": "sk-new", "user": "bob"}, {"key": "sk-bad"}]}')
    service.keys_file.chmod(0o600)
    reloaded = await service.stub.ReloadKeys(pb.ReloadKeysRequest())
    assert reloaded.keys == 1 and len(reloaded.problems) == 1 and "sk-bad" not in reloaded.problems[0]
    assert (await service.stub.Admit(service.ask(1))).reason == "INVALID_API_KEY"
    service.keys_file.write_text("{")
    with pytest.raises(grpc.aio.AioRpcError) as unreadable:
        await service.stub.ReloadKeys(pb.ReloadKeysRequest())
    assert unreadable.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (key,) = (await service.stub.ListKeys(pb.ListKeysRequest())).keys
    assert key.user == "bob" and not key.HasField("quota"), "an unreadable file changes nothing"


def test_a_newer_peers_enum_values_are_harmless() -> None:
    from vllm_proxy.auth.wire import ask_of, settlement_of

    asked = ask_of(pb.AdmitRequest(operation=77, request_id="x" * 500), "o")  # type: ignore[arg-type]
    assert asked.operation == 0 and len(asked.request_id) == 128 and asked.response_tokens is None
    given = settlement_of(pb.SettleRequest(lease_id="l", source=9, outcome=9))  # type: ignore[arg-type]
    assert given == Settlement("l", 1, Source.EDGE, Outcome.UNSPECIFIED, Usage())


def test_the_domain_knows_no_wire() -> None:
    for module in ("admission", "account", "closed_leases", "decision", "limiter", "lease", "keys", "store"):
        source = Path(__import__(f"vllm_proxy.auth.{module}", fromlist=["x"]).__file__).read_text()
        assert "grpc" not in source.replace("google.rpc", "") and "fastapi" not in source, module
    assert Admission.__module__ == "vllm_proxy.auth.admission"


# Waiting for room


async def test_an_admission_may_wait_and_may_be_given_up(service: Service) -> None:
    key = replace(service.desk.key, rules=KeyRules(LimitOverrides(concurrent=1), admission_wait_ms=5000))
    service.desk.admission.declare_keys([key])
    call = await service.session()
    await call.write(pb.SessionRequest(admits=[service.ask(seq) for seq in (1, 2, 3)]))
    (first,) = (await call.read()).admits
    assert first.seq == 1 and len(service.desk.admission.waiting) == 2
    await call.write(pb.SessionRequest(cancel_admit_seqs=[2, 77]))
    (given_up,) = (await call.read()).admits
    assert (given_up.seq, given_up.admitted, given_up.reason) == (2, False, "")
    await call.write(pb.SessionRequest(settles=[truth(4, first.lease_id)]))
    admits, settles = [], []
    while not (admits and settles):
        message = await call.read()
        admits += message.admits
        settles += message.settles
    assert [(answer.seq, answer.admitted) for answer in admits] == [(3, True)]
    assert len(service.desk.admission.waiting) == 0


async def test_nobody_waits_for_a_session_that_ended(service: Service) -> None:
    key = replace(service.desk.key, rules=KeyRules(LimitOverrides(concurrent=1), admission_wait_ms=5000))
    service.desk.admission.declare_keys([key])
    broken, drained = await service.session("edge-1"), await service.session("edge-2")
    await broken.write(pb.SessionRequest(admits=[service.ask(1), service.ask(2)]))
    await broken.read()
    await drained.write(pb.SessionRequest(admits=[service.ask(1)]))
    async with asyncio.timeout(DEADLINE_S):
        while len(service.desk.admission.waiting) != 2:
            await service.stub.ListLeases(pb.ListLeasesRequest())
        broken.cancel()
        while len(service.desk.admission.waiting) != 1:
            await service.stub.ListLeases(pb.ListLeasesRequest())
    service.servicer.drain()
    assert await drained.read() is grpc.aio.EOF
    assert len(service.desk.admission.waiting) == 0
