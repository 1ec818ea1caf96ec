"""One request between a scripted client and scripted hosts: every way it can end, and what is settled."""

from __future__ import annotations

import asyncio
import json
import weakref

import pytest
from tests.unit.edge.edge_peers import Bench, eventually

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.engine.v1 import engine_pb2
from vllm_proxy.edge.exchange import END_WAIT_S

EVENT = b'data: {"x":1}\n\n'
DONE = b"data: [DONE]\n\n"


def settled(bench: Bench) -> tuple[auth_pb2.Outcome, int, int, str]:
    (one,) = bench.book.settlements
    assert one.lease_id == "lease-1"
    return one.outcome, one.attempt, one.completion_tokens, one.host


async def test_stream_passes_untouched_and_is_settled_then_acknowledged() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    (_, envelope, body, credit) = bench.sessions[0].started[0]
    assert (envelope.lease_id, envelope.attempt, envelope.path, body) == ("lease-1", 1, "/v1/chat/completions", b"{}")
    assert credit == bench.context.config.response_window_bytes
    bench.stream(EVENT, EVENT)
    assert not bench.client.complete
    bench.exchange.deliver(DONE, 7, 3, False)
    bench.end(outcome=auth_pb2.OUTCOME_FINISHED)
    assert bench.client.body == EVENT + EVENT + DONE
    assert bench.client.complete
    headers = bench.client.headers
    assert b"server" not in headers
    assert headers[b"x-request-id"] == b"req-1"
    assert (headers[b"x-accel-buffering"], headers[b"cache-control"]) == (b"no", b"no-cache")
    assert settled(bench) == (auth_pb2.OUTCOME_FINISHED, 1, 3, "a")
    assert bench.sessions[0].acked == []
    bench.book.make_durable()
    assert bench.sessions[0].acked == [1]
    assert not bench.context.running
    bench.client.leave()
    assert bench.sessions[0].cancelled == []
    assert not bench.tasks, "an open transport needs no task"


async def test_small_answer_leaves_in_one_piece() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-type", b"application/json"), (b"content-length", b"2")])
    bench.exchange.deliver(b"{}", 7, 3, False)
    bench.end()
    assert bench.client.transport.writes == 1
    assert bench.client.complete


async def test_engine_errors_pass_as_they_are() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.exchange.head(404, [(b"content-type", b"application/json")])
    bench.exchange.deliver(b'{"error":{}}', 0, 0, False)
    bench.end(completion_tokens=0)
    assert (bench.client.status, bench.client.body) == (404, b'{"error":{}}')


async def test_client_that_leaves_cancels_and_pays_for_what_was_made() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.client.leave()
    assert bench.sessions[0].cancelled == [1]
    assert bench.book.settlements == [], "the true count comes with the end"
    bench.exchange.deliver(EVENT, 7, 2, True)
    bench.end(outcome=auth_pb2.OUTCOME_CANCELLED, completion_tokens=9)
    assert settled(bench) == (auth_pb2.OUTCOME_CANCELLED, 1, 9, "a")
    assert bench.client.body == EVENT
    assert bench.exchange.reason == "CLIENT_GONE"


@pytest.mark.parametrize("whole", [True, False])
async def test_client_that_leaves_with_the_last_byte_is_not_gone_early(whole: bool) -> None:
    bench = Bench("a")
    bench.exchange.begin()
    if whole:
        bench.exchange.head(200, [(b"content-length", b"2")])
        bench.exchange.deliver(b"{}", 7, 3, True)
    else:
        bench.stream(EVENT, DONE)
    bench.client.leave()
    assert bench.sessions[0].cancelled == []
    bench.end(outcome=auth_pb2.OUTCOME_FINISHED)
    assert settled(bench)[0] == auth_pb2.OUTCOME_FINISHED
    assert bench.exchange.reason == "none"


async def test_the_pace_of_tokens_and_the_lag_of_the_settlement_are_measured() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.clock.now += 1.0
    bench.stream(b"data: 1\n\n")
    bench.clock.now += 0.09
    bench.end(completion_tokens=4)
    bench.client.leave()
    bench.clock.now += 2.0
    bench.book.make_durable()
    bench.context.metrics.flush()
    read = bench.context.metrics.registry.get_sample_value
    prefix = "vllm_proxy_edge_"
    assert read(f"{prefix}time_per_output_token_seconds_sum") == pytest.approx(0.03)
    assert read(f"{prefix}settle_duration_seconds_sum") == pytest.approx(2.0)
    assert read(f"{prefix}tokens_total", {"model": "unknown", "kind": "completion"}) == 4


async def test_end_that_never_comes_is_settled_with_the_last_counts() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.stream(EVENT, EVENT)
    bench.client.leave()
    bench.clock.now += END_WAIT_S - 1
    bench.exchange.sweep(bench.clock.now)
    assert bench.book.settlements == []
    bench.clock.now += 1
    bench.exchange.sweep(bench.clock.now)
    assert settled(bench) == (auth_pb2.OUTCOME_CANCELLED, 1, 2, "a")
    assert bench.sessions[0].forgotten == [1]


async def test_host_that_dies_before_the_first_byte_is_replaced() -> None:
    bench = Bench("a", "b")
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-type", b"text/event-stream")])
    bench.sessions[0].connected = False
    bench.exchange.lost()
    ((_, envelope, body, _),) = bench.sessions[1].started
    assert (envelope.attempt, envelope.lease_id, body) == (2, "lease-1", b"{}")
    bench.stream(EVENT)
    bench.end(outcome=auth_pb2.OUTCOME_FINISHED)
    assert bench.client.body == EVENT
    assert settled(bench) == (auth_pb2.OUTCOME_FINISHED, 2, 3, "b")


async def test_only_once() -> None:
    bench = Bench("a", "b", "c")
    bench.exchange.begin()
    bench.exchange.lost()
    bench.exchange.lost()
    assert bench.sessions[2].started == []
    assert bench.client.status == 502
    assert bench.client.complete
    assert settled(bench)[:2] == (auth_pb2.OUTCOME_FAILED, 2)


@pytest.mark.parametrize("reason", ["NO_CAPACITY", "ENGINE_UNAVAILABLE", "ENGINE_FAILED"])
async def test_host_that_cannot_is_replaced(reason: str) -> None:
    bench = Bench("a", "b")
    bench.exchange.begin()
    bench.end(reason=reason, message="No.", outcome=auth_pb2.OUTCOME_NOT_SENT, completion_tokens=0)
    assert len(bench.sessions[1].started) == 1
    bench.stream(EVENT)
    bench.end()
    bench.book.make_durable()
    assert bench.sessions[0].acked == [1], "the first try's end is acknowledged too"
    assert bench.sessions[1].acked == [1]


async def test_hosts_that_stop_one_after_the_other_fail_nobody() -> None:
    bench = Bench("a", "b", "c", "d")
    bench.exchange.begin()
    for _ in range(3):
        bench.end(reason="ENGINE_UNAVAILABLE", message="No.", outcome=auth_pb2.OUTCOME_NOT_SENT, completion_tokens=0)
    bench.stream(EVENT)
    bench.end()
    assert bench.client.body == EVENT
    assert settled(bench)[1] == 4, "a later attempt than those that the hosts may settle themselves"


async def test_another_process_of_a_host_that_stopped_is_waited_for() -> None:
    bench = Bench("a", retry_wait_s=0.001)
    (session,) = bench.sessions
    bench.exchange.begin()
    bench.end(reason="ENGINE_UNAVAILABLE", message="No.", outcome=auth_pb2.OUTCOME_NOT_SENT, completion_tokens=0)
    await eventually(lambda: bench.tasks)
    assert not bench.client.written, "as long as for any host: nothing has failed"
    session.incarnation = "a-2"
    bench.hosts.changed()
    await eventually(lambda: len(session.started) == 2)
    bench.stream(EVENT)
    bench.end()
    assert bench.client.body == EVENT


async def test_same_host_serves_again_with_another_engine() -> None:
    bench = Bench("a")
    (session,) = bench.sessions
    bench.exchange.begin()
    bench.end(reason="ENGINE_FAILED", message="No.", outcome=auth_pb2.OUTCOME_FAILED, completion_tokens=0)
    bench.hosts.changed()
    await eventually(lambda: bench.tasks)
    assert len(session.started) == 1
    bench.hosts.engine_returns = 1
    bench.hosts.changed()
    await eventually(lambda: len(session.started) == 2)
    bench.stream(EVENT)
    bench.end()
    assert bench.client.body == EVENT


async def test_host_that_stops_and_no_other_in_time_is_503() -> None:
    bench = Bench("a", capacity_wait_s=0.001)
    bench.exchange.begin()
    bench.end(reason="ENGINE_UNAVAILABLE", message="No.", outcome=auth_pb2.OUTCOME_NOT_SENT, completion_tokens=0)
    await eventually(lambda: bench.client.complete)
    assert bench.client.status == 503
    assert b"retry-after" in bench.client.headers
    assert settled(bench)[0] == auth_pb2.OUTCOME_NOT_SENT


async def test_full_only_host_answers_503_with_retry_after() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.end(reason="NO_CAPACITY", message="Full.", outcome=auth_pb2.OUTCOME_NOT_SENT, completion_tokens=0)
    assert bench.client.status == 503
    assert bench.client.headers[b"retry-after"] == b"1"
    assert settled(bench)[:2] == (auth_pb2.OUTCOME_NOT_SENT, 1)


async def test_refusal_of_a_host_is_not_tried_elsewhere() -> None:
    bench = Bench("a", "b")
    bench.exchange.begin()
    bench.end(reason="INVALID_REQUEST", message="Wrong.", completion_tokens=0)
    assert bench.sessions[1].started == []
    assert bench.client.status == 400
    assert json.loads(bench.client.body)["error"]["message"] == "Wrong."


async def test_host_that_dies_in_a_stream_ends_it_with_an_error_event() -> None:
    bench = Bench("a", "b")
    bench.exchange.begin()
    bench.stream(EVENT, EVENT)
    bench.exchange.lost()
    assert bench.sessions[1].started == []
    events = bench.client.body.removeprefix(EVENT + EVENT)
    assert json.loads(events.removeprefix(b"data: "))["error"]["code"] == "engine_failed"
    assert DONE not in bench.client.body
    assert bench.client.complete
    assert settled(bench) == (auth_pb2.OUTCOME_FAILED, 1, 2, "a")


async def test_host_that_dies_in_a_plain_body_breaks_the_connection() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-type", b"application/json"), (b"content-length", b"100")])
    bench.exchange.deliver(b"{", 7, 1, True)
    bench.exchange.lost()
    assert bench.client.closed
    assert not bench.client.complete
    assert settled(bench)[0] == auth_pb2.OUTCOME_FAILED


async def test_no_host_is_waited_for() -> None:
    bench = Bench()
    bench.exchange.begin()
    await eventually(lambda: bench.tasks)
    late = Bench("late").sessions[0]
    await asyncio.sleep(0)
    bench.hosts.sessions.append(late)
    bench.hosts.changed()
    await eventually(lambda: late.started)
    bench.stream(EVENT)
    bench.end()
    assert bench.client.body == EVENT


async def test_no_host_in_time_is_503() -> None:
    bench = Bench(capacity_wait_s=0.001)
    bench.exchange.begin()
    await eventually(lambda: bench.client.complete)
    assert bench.client.status == 503
    assert b"retry-after" in bench.client.headers
    assert settled(bench)[0] == auth_pb2.OUTCOME_NOT_SENT


async def test_a_host_that_failed_and_no_other_in_time_is_502() -> None:
    bench = Bench("a", retry_wait_s=0.001)
    bench.exchange.begin()
    bench.sessions[0].connected = False
    bench.exchange.lost()
    await eventually(lambda: bench.client.complete)
    assert bench.client.status == 502
    assert settled(bench)[0] == auth_pb2.OUTCOME_FAILED


async def test_client_that_leaves_while_a_host_is_waited_for() -> None:
    bench = Bench()
    bench.exchange.begin()
    bench.client.leave()
    assert settled(bench)[0] == auth_pb2.OUTCOME_NOT_SENT
    await eventually(lambda: not bench.tasks)
    assert not bench.context.running
    assert bench.client.written == b""


async def test_same_host_serves_again_as_another_process() -> None:
    bench = Bench("a")
    (session,) = bench.sessions
    bench.exchange.begin()
    session.connected = False
    bench.exchange.lost()
    session.connected, session.incarnation = True, "a-2"
    await asyncio.sleep(0)
    bench.hosts.changed()
    await eventually(lambda: len(session.started) == 2)


async def test_request_timeout_before_the_first_byte_is_504() -> None:
    bench = Bench("a", request_timeout_s=10)
    bench.exchange.begin()
    bench.clock.now += 10
    bench.exchange.sweep(bench.clock.now)
    assert bench.client.status == 504
    assert bench.sessions[0].cancelled == [1]
    bench.stream(EVENT)
    bench.end(outcome=auth_pb2.OUTCOME_CANCELLED, completion_tokens=4)
    assert settled(bench) == (auth_pb2.OUTCOME_CANCELLED, 1, 4, "a")
    assert b"data" not in bench.client.body


async def test_request_timeout_in_a_stream_is_an_error_event() -> None:
    bench = Bench("a", request_timeout_s=10)
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.clock.now += 10
    bench.exchange.sweep(bench.clock.now)
    assert b'"code":"request_timeout"' in bench.client.body
    assert bench.client.complete


async def test_slow_client_gets_everything_and_only_then_is_credit_granted() -> None:
    bench = Bench("a", response_window_bytes=16 * 1024)
    piece = b"x" * 4096
    bench.exchange.begin()
    bench.client.paused = True
    bench.exchange.head(200, [(b"content-type", b"text/event-stream")])
    for count in range(4):
        bench.exchange.deliver(piece, 1, count, True)
    await asyncio.sleep(0)
    assert bench.client.written == b""
    assert bench.sessions[0].granted == []
    bench.client.paused = False
    await eventually(lambda: len(bench.client.body) == 4 * 4096)
    assert bench.client.transport.writes == 1, "what queued goes out in one piece"
    assert sum(granted for _, granted in bench.sessions[0].granted) == 4 * 4096
    bench.exchange.deliver(piece, 1, 5, True)
    assert len(bench.client.body) == 5 * 4096, "the fast path is back"
    bench.end()
    assert bench.client.complete


async def test_end_that_comes_while_the_client_is_behind() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.client.paused = True
    bench.exchange.deliver(EVENT, 7, 2, True)
    bench.exchange.deliver(DONE, 7, 3, False)
    bench.end()
    assert settled(bench)[2] == 3, "settling does not wait for the client"
    assert bench.context.running
    bench.client.paused = False
    await eventually(lambda: bench.client.complete)
    assert bench.client.body == EVENT + EVENT + DONE
    assert not bench.context.running


async def test_client_that_stalls_is_cut_off() -> None:
    bench = Bench("a", client_stall_timeout_s=120)
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.client.paused, bench.client.transport.unsent_bytes = True, 1000
    bench.exchange.deliver(EVENT, 7, 2, True)
    for _ in range(120):
        bench.exchange.sweep(bench.clock.now)
        bench.clock.now += 1
    assert not bench.client.aborted
    bench.exchange.sweep(bench.clock.now)
    assert bench.client.aborted
    assert bench.sessions[0].cancelled == [1]
    bench.end(outcome=auth_pb2.OUTCOME_CANCELLED)
    assert settled(bench)[0] == auth_pb2.OUTCOME_CANCELLED
    assert bench.exchange.reason == "CLIENT_STALLED"
    await eventually(lambda: not bench.tasks)


async def test_client_that_is_merely_slow_never_is() -> None:
    bench = Bench("a", client_stall_timeout_s=120)
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.client.paused, bench.client.transport.unsent_bytes = True, 10_000
    bench.exchange.deliver(EVENT, 7, 2, True)
    for _ in range(100):
        bench.exchange.sweep(bench.clock.now)
        bench.clock.now += 30
        bench.client.transport.unsent_bytes -= 1
    assert not bench.client.aborted
    bench.client.paused = False
    await eventually(lambda: bench.client.body == EVENT + EVENT)


async def test_host_that_ignores_its_credit_is_cut_off() -> None:
    bench = Bench("a", response_window_bytes=16 * 1024)
    bench.exchange.begin()
    bench.client.paused = True
    bench.exchange.head(200, [(b"content-type", b"text/event-stream")])
    for count in range(12):
        bench.exchange.deliver(b"x" * 4096, 1, count, True)
    assert bench.client.closed
    assert bench.sessions[0].cancelled == [1]
    bench.exchange.lost()
    assert len(bench.book.settlements) == 1
    await eventually(lambda: not bench.tasks)


async def test_shutdown_ends_a_stream_visibly() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.exchange.shut_down()
    assert b'"error"' in bench.client.body
    assert bench.client.complete
    assert bench.sessions[0].cancelled == [1]
    bench.end(outcome=auth_pb2.OUTCOME_CANCELLED)
    assert len(bench.book.settlements) == 1
    assert not bench.context.running


async def test_long_timeouts_fit_the_envelope() -> None:
    bench = Bench("a", request_timeout_s=1e9)
    bench.exchange.begin()
    assert bench.sessions[0].started[0][1].timeout_ms == 2**32 - 1


async def test_length_that_is_no_number_is_dropped() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-length", b"some")])
    bench.exchange.deliver(b"{}", 7, 3, False)
    bench.end()
    assert bench.client.body == b"{}"


@pytest.mark.parametrize("length", [b"3", b"1"])
async def test_body_of_another_length_than_announced_breaks_the_connection(length: bytes) -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-length", length)])
    bench.exchange.deliver(b"{}", 7, 3, False)
    bench.end()
    assert bench.client.closed
    assert len(bench.book.settlements) == 1
    assert not bench.context.running


async def test_request_leaves_no_cycle_behind() -> None:
    bench = Bench("a")
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.exchange.deliver(DONE, 7, 3, False)
    bench.end()
    bench.book.make_durable()
    bench.book.settlements.clear()
    bench.sessions[0].started.clear()
    bench.client.kept.requests.clear()
    gone = weakref.ref(bench.exchange)
    del bench.exchange
    assert gone() is None, "collecting cycles cost a third of a request's time"


async def test_the_books_learn_the_base_model_of_what_answered_only() -> None:
    bench = Bench("a")
    bench.hosts.bases = {}
    bench.exchange.begin()
    bench.stream(EVENT)
    bench.end(outcome=auth_pb2.OUTCOME_FINISHED)
    unknown = Bench("a")
    unknown.hosts.bases = {}
    unknown.exchange.begin()
    unknown.exchange.ended(engine_pb2.EndFrame())
    assert [bench.book.settlements[0].base_model for bench in (bench, unknown)] == ["base", ""]


async def test_a_silent_stream_gets_comments_between_events() -> None:
    bench = Bench("a", sse_keepalive_s=10)
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-type", b"text/event-stream")])

    def later(seconds: float) -> bytes:
        bench.clock.now += seconds
        bench.exchange.sweep(bench.clock.now)
        return bench.client.body if bench.client.written else b""

    later(0)
    assert later(9) == b""
    assert later(1) == b": keep-alive\n\n"
    bench.exchange.deliver(b"data: 1\n\n", 1, 1, True)
    later(9)
    assert later(9) == b": keep-alive\n\ndata: 1\n\n"
    assert later(1) == b": keep-alive\n\ndata: 1\n\n: keep-alive\n\n"
    bench.exchange.deliver(b"data: half", 1, 1, True)
    later(1)
    before = later(0)
    assert later(100) == before and before.endswith(b"half")


async def test_an_answer_that_is_no_stream_gets_no_comment() -> None:
    bench = Bench("a", sse_keepalive_s=10)
    bench.exchange.begin()
    bench.exchange.head(200, [(b"content-type", b"application/json")])
    for _ in range(3):
        bench.clock.now += 20
        bench.exchange.sweep(bench.clock.now)
    assert bench.client.written == b""


async def test_timing_is_told_when_it_is_asked_for() -> None:
    bench = Bench("a", server_timing=True)
    bench.exchange.begin()
    bench.clock.now += 0.25
    bench.stream(b"data: 1\n\n")
    assert bench.client.headers[b"server-timing"] == b"auth;dur=0.00, route;dur=0.00, ttft;dur=250.00"
