"""HTTP/1.1 as the edge speaks it, on a transport that is only a record."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.unit.edge.http_peer import LIMITS, Answer, Client

from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.edge.http_connection import MAX_PIPELINED
from vllm_proxy.edge.http_request import HttpRequest

JSON = [(b"content-type", b"application/json"), (b"content-length", b"2")]


class Owner:
    def __init__(self, request: HttpRequest) -> None:
        self.written_bytes = 0
        self.ends: list[str] = []
        request.response.owner = self

    def written(self, size_bytes: int) -> None:
        self.written_bytes += size_bytes

    def sent(self) -> None:
        self.ends.append("sent")

    def client_left(self) -> None:
        self.ends.append("client_left")


def post(body: bytes, *lines: str) -> bytes:
    head = ["POST /p?q=1 HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


# Requests.


def test_request_is_handed_over_when_its_body_is_complete() -> None:
    client = Client()
    wire = post(b"hello", "X-One: a", "x-one: b")
    client.send(wire[:-3])
    assert client.kept.requests == []
    client.send(wire[-3:])
    request = client.request
    assert (request.method, request.path, request.query, request.body) == ("POST", "/p", b"q=1", b"hello")
    assert request.headers[b"x-one"] == b"b"
    assert [value for name, value in request.header_list if name == b"x-one"] == [b"a", b"b"]
    assert (request.http_version, request.client_host) == ("1.1", "127.0.0.1")


@pytest.mark.parametrize("size", [1, 2, 7])
def test_request_in_any_pieces(size: int) -> None:
    client = Client()
    wire = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nt: u\r\n\r\n"
    for start in range(0, len(wire), size):
        client.send(wire[start : start + size])
    assert client.request.body == b"abcdefg"
    assert b"t" not in client.request.headers
    client.request.response.send(200, JSON, b"{}")
    assert client.complete


def test_whole_urls_are_paths_too() -> None:
    client = Client()
    client.get("http://edge/p?q=1")
    assert (client.request.path, client.request.query) == ("/p", b"q=1")


def test_connection_is_kept_for_the_next_request() -> None:
    client = Client()
    for count in range(3):
        client.get(f"/{count}")
        client.request.response.send(200, JSON, b"{}")
    assert [request.path for request in client.kept.requests] == ["/0", "/1", "/2"]
    assert [answer.status for answer in client.answers] == [200] * 3
    assert not client.closed


@pytest.mark.parametrize(
    ("version", "lines", "kept"),
    [
        ("1.1", [], True),
        ("1.1", ["connection: close"], False),
        ("1.0", [], False),
        ("1.0", ["connection: keep-alive"], True),
    ],
)
def test_connection_closes_when_the_client_wants_it(version: str, lines: list[str], kept: bool) -> None:
    client = Client()
    client.get("/", *lines, version=version)
    client.request.response.send(200, JSON, b"{}")
    assert client.complete
    assert client.closed is not kept
    assert client.headers.get(b"connection") == (
        None if kept and version == "1.1" else b"keep-alive" if kept else b"close"
    )


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    client = Client()
    client.send(post(b"one") + post(b"two") + b"GET /three HTTP/1.1\r\nhost: x\r\n\r\n")
    assert not client.transport.reading
    for count, body in enumerate((b"one", b"two", b""), 1):
        assert len(client.kept.requests) == count
        assert client.request.body == body
        client.request.response.send(200, JSON, b"{}")
        await asyncio.sleep(0)
        assert len(client.answers) == count
    assert client.transport.reading


async def test_too_many_pipelined_requests_are_refused_at_their_turn() -> None:
    client = Client()
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * (MAX_PIPELINED + 50))
    served = 0
    while not client.closed:
        client.request.response.send(200, JSON, b"{}")
        served += 1
        await asyncio.sleep(0)
    assert served == MAX_PIPELINED + 1
    assert client.answers[-1].status == 400


def test_many_refusals_in_one_read_are_not_many_calls_deep() -> None:
    client = Client()
    client.kept.refusal = InvalidRequest("No.")
    client.send(b"GET / HTTP/1.1\r\n\r\n" * 2000)
    assert client.transport.writes == 2000


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
def test_body_is_asked_for_if_the_client_waits_for_it(expect: str) -> None:
    client = Client()
    head = f"POST / HTTP/1.1\r\nhost: x\r\nexpect: {expect}\r\ncontent-length: 2\r\n\r\n".encode()
    client.send(head)
    assert client.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"{}")
    assert client.request.body == b"{}"


def test_body_that_will_not_be_taken_is_not_asked_for() -> None:
    client = Client()
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 200\r\n\r\n")
    assert client.status == 413
    assert client.headers[b"connection"] == b"close"
    assert client.closed, "nobody can tell whether a body or a request comes next"


def test_other_protocols_are_not_spoken() -> None:
    client = Client()
    client.get("/", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: x")
    client.request.response.send(200, JSON, b"{}")
    assert client.complete
    assert client.closed


# Limits.


def test_announced_body_over_the_limit_is_refused_at_once_and_passed_over() -> None:
    client = Client()
    client.send(post(b"x" * 101)[:-50])
    assert (client.status, client.answer.error["code"]) == (413, "request_too_large")
    client.send(b"x" * 50)
    client.get("/next")
    assert client.request.path == "/next"
    assert client.server.bodies.used_bytes == 0


def test_body_that_grows_over_the_limit_is_refused() -> None:
    client = Client()
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(20):
        client.send(b"a\r\n0123456789\r\n")
    client.send(b"0\r\n\r\n")
    assert client.status == 413
    assert len(client.answers) == 1
    assert client.server.bodies.used_bytes == 0
    client.get()
    assert len(client.kept.requests) == 1


def test_all_bodies_together_are_bounded() -> None:
    one = Client(limits=replace(LIMITS, max_buffered_bytes=150))
    two, three = Client(one.kept, server=one.server), Client(one.kept, server=one.server)
    one.send(post(b"x" * 90)[:-1])
    two.send(post(b"x" * 70))
    assert two.status == 503
    assert two.headers[b"retry-after"] == b"1"
    three.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    three.send(b"46\r\n" + b"x" * 70 + b"\r\n")
    assert three.status == 503
    assert not two.closed and not three.closed
    one.leave()
    assert one.server.bodies.used_bytes == 0
    two.send(post(b"x" * 70))
    one.kept.requests[-1].response.send(200, JSON, b"{}")
    assert one.server.bodies.used_bytes == 0


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\n" + b"x-more: yyyyyyyyyyyyyyyy\r\n" * 60, b"GET / HTTP/1.1\r\nx: " + b"y" * 1200]
)
@pytest.mark.parametrize("size", [100, 5000])
def test_head_over_the_limit_is_431(head: bytes, size: int) -> None:
    client = Client()
    wire = head + b"\r\n\r\n"
    for start in range(0, len(wire), size):
        if not client.closed:
            client.send(wire[start : start + size])
    assert (client.status, client.answer.error["code"]) == (431, "headers_too_large")
    assert client.kept.requests == []


def test_endless_trailers_are_431() -> None:
    client = Client()
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    for _ in range(20):
        if not client.closed:
            client.send(b"x-more: " + b"y" * 80 + b"\r\n")
    assert client.status == 431
    assert client.closed


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x00\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff"])
def test_junk_is_400_in_openais_shape(junk: bytes) -> None:
    client = Client()
    client.send(junk)
    assert client.status == 400
    assert client.answer.error["type"] == "invalid_request_error"
    assert client.closed


def test_junk_in_a_body_is_400() -> None:
    client = Client()
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
    assert client.status == 400
    assert client.closed


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: -1\r\n",
        b"transfer-encoding: gzip\r\n",
        b"x : y\r\n",
    ],
)
def test_what_could_smuggle_a_request_is_refused(lines: bytes) -> None:
    client = Client()
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\nhello")
    assert client.status == 400
    assert client.closed
    assert client.kept.requests == []


def test_junk_behind_a_request_waits_for_its_answer() -> None:
    client = Client()
    client.send(post(b"one") + b"\x00\x00")
    client.request.response.send(200, JSON, b"{}")
    assert client.complete
    assert client.closed


# Deadlines.


def sweep(client: Client, seconds: float) -> None:
    client.now += seconds
    client.server.sweep(client.now)


@pytest.mark.parametrize("wire", [b"", b"GET / HTTP/1.1\r\n"])
def test_head_that_never_ends_times_out(wire: bytes) -> None:
    client = Client()
    if wire:
        client.send(wire)
    sweep(client, 59)
    assert not client.closed
    sweep(client, 1)
    assert client.closed
    assert client.written == b""


def test_body_that_never_ends_is_408() -> None:
    client = Client()
    client.send(post(b"hello")[:-1])
    sweep(client, 60)
    assert (client.status, client.closed) == (408, True)
    assert client.server.bodies.used_bytes == 0


def test_refused_body_that_never_ends_closes() -> None:
    client = Client()
    client.send(post(b"x" * 200)[:-1])
    sweep(client, 60)
    assert client.closed
    assert len(client.answers) == 1


def test_idle_connection_closes() -> None:
    client = Client()
    client.get()
    sweep(client, 1000)
    assert not client.closed, "the answer takes as long as it takes"
    client.request.response.send(200, JSON, b"{}")
    sweep(client, 74)
    assert not client.closed
    client.send(b"GET / HT")
    sweep(client, 59)
    assert not client.closed
    client.send(b"TP/1.1\r\nhost: x\r\n\r\n")
    client.request.response.send(200, JSON, b"{}")
    sweep(client, 75)
    assert client.closed


# Responses.


def test_answer_is_one_write() -> None:
    client = Client()
    client.get()
    owner = Owner(client.request)
    client.request.response.send(200, JSON, b"{}")
    assert client.transport.writes == 1
    assert (owner.written_bytes, owner.ends) == (2, ["sent"])
    assert client.headers[b"date"].endswith(b" GMT")


def test_answer_of_unknown_length_is_chunked() -> None:
    client = Client()
    client.get()
    response = client.request.response
    response.start(200, [])
    response.write(b"one")
    response.write(b"")
    response.finish(b"two")
    assert client.headers[b"transfer-encoding"] == b"chunked"
    assert (client.body, client.complete, client.transport.writes) == (b"onetwo", True, 2)
    assert not client.closed


def test_http_1_0_knows_no_chunks() -> None:
    client = Client()
    client.get("/", "connection: keep-alive", version="1.0")
    response = client.request.response
    response.start(200, [])
    response.write(b"one")
    response.finish(b"two")
    assert b"transfer-encoding" not in client.headers
    assert (client.body, client.closed) == (b"onetwo", True)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("HEAD", 405), ("GET", 204), ("GET", 304)])
def test_answers_that_have_no_body(method: str, status: int) -> None:
    client = Client()
    client.get(method=method)
    client.request.response.send(status, [] if status in (204, 304) else JSON, b"{}")
    answer = Answer(client.written, has_body=False)
    assert (answer.status, answer.rest) == (status, b"")
    assert b"transfer-encoding" not in answer.headers
    assert not client.closed


@pytest.mark.parametrize("body", [b"{", b"{}}"])
def test_body_of_another_length_than_announced_closes(body: bytes) -> None:
    client = Client()
    client.get()
    owner = Owner(client.request)
    client.request.response.send(200, JSON, body)
    assert client.closed
    assert owner.ends == ["client_left"]


def test_client_that_reads_slowly_gets_everything_and_in_few_pieces() -> None:
    client = Client()
    client.get()
    owner = Owner(client.request)
    response = client.request.response
    response.start(200, [])
    response.write(b"a")
    client.paused = True
    for _ in range(10):
        response.write(b"b")
    response.finish(b"c")
    assert (owner.written_bytes, owner.ends, response.waiting) == (1, [], True)
    assert not client.complete
    client.paused = False
    assert (client.body, client.transport.writes) == (b"a" + b"b" * 10 + b"c", 2)
    assert (owner.written_bytes, owner.ends, response.progress) == (12, ["sent"], 1)


def test_client_that_leaves_is_told_of_once() -> None:
    client = Client()
    client.get()
    owner = Owner(client.request)
    response = client.request.response
    response.start(200, [])
    response.write(b"a")
    client.leave()
    response.write(b"b")
    response.finish()
    assert owner.ends == ["client_left"]
    assert client.body == b"a"
    assert not client.server.connections


def test_fault_of_a_handler_is_500() -> None:
    class Broken:
        def body_limit_bytes(self, request: HttpRequest) -> int:
            return 0

        def handle(self, request: HttpRequest) -> None:
            raise RuntimeError("secret")

        def refuse(self, request: HttpRequest, error: Exception) -> None: ...

    client = Client(Broken())
    client.get()
    assert client.status == 500
    assert "secret" not in str(client.answer.error)
    assert not client.closed


# The end of the server.


async def test_stop_waits_for_requests_and_closes_after_them() -> None:
    client = Client()
    client.get()
    stopping = asyncio.create_task(client.server.stop(10))
    await asyncio.sleep(0)
    assert not client.closed
    client.request.response.send(200, JSON, b"{}")
    assert client.headers[b"connection"] == b"close"
    assert client.closed
    client.leave()
    assert await stopping


async def stopped(client: Client, *, drain_idle_s: float = 2) -> None:
    client.server.limits = replace(LIMITS, drain_idle_s=drain_idle_s)
    assert not await client.server.stop(0)


async def test_request_that_was_on_its_way_at_a_stop_is_answered() -> None:
    client = Client()
    client.get("/before")
    client.request.response.send(200, JSON, b"{}")
    await stopped(client)
    client.now += 1.9
    client.server.sweep(client.now)
    assert not client.closed
    client.get("/late")
    client.now += 60
    client.server.sweep(client.now)
    assert not client.closed, "its answer takes as long as it takes"
    client.request.response.send(200, JSON, b"{}")
    assert [answer.headers.get(b"connection") for answer in client.answers] == [None, b"close"]
    assert client.closed


@pytest.mark.parametrize("used", [True, False])
async def test_idle_connection_is_closed_some_time_after_a_stop(used: bool) -> None:
    client = Client()
    if used:
        client.get()
        client.request.response.send(200, JSON, b"{}")
    await stopped(client)
    assert not client.closed
    client.now += 2
    client.server.sweep(client.now)
    assert client.closed


async def test_idle_connection_is_closed_at_once_where_that_is_wanted() -> None:
    client = Client()
    await stopped(client, drain_idle_s=0)
    assert client.closed


async def test_client_that_was_promised_the_connection_may_use_it_once_more() -> None:
    client = Client()
    client.get("/before")
    client.request.response.start(200, JSON)
    client.request.response.write(b"{")
    await stopped(client)
    client.request.response.finish(b"}")
    assert not client.closed
    client.get("/after")
    client.request.response.send(200, JSON, b"{}")
    assert [answer.headers.get(b"connection") for answer in client.answers] == [None, b"close"]
    assert client.closed


async def test_stop_answers_all_that_was_pipelined() -> None:
    client = Client()
    client.send(post(b"one") + post(b"two"))
    stopping = asyncio.create_task(client.server.stop(10))
    await asyncio.sleep(0)
    for _ in range(2):
        client.request.response.send(200, JSON, b"{}")
        await asyncio.sleep(0)
    assert [answer.headers.get(b"connection") for answer in client.answers] == [None, b"close"]
    assert client.closed
    client.leave()
    assert await stopping


async def test_connection_that_was_accepted_before_the_listener_closed_is_served() -> None:
    client = Client()
    await stopped(client)
    late = Client(server=client.server)
    late.get()
    client.request.response.send(200, JSON, b"{}")
    assert late.headers[b"connection"] == b"close"


async def test_stop_gives_up_in_time() -> None:
    client = Client()
    client.get()
    assert not await client.server.stop(0)
    client.server.abort()
    assert client.aborted
