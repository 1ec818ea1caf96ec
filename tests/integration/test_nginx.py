"""The real nginx in front of the edge, as `scripts/start.sh --nginx` starts it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from scripts import nginx_config
from tests.support.cluster import free_port
from tests.support.http_client import Client, Connection
from tests.support.process import log_lines
from tests.support.proxyctl import proxyctl
from tests.support.site import ALICE, BOB, ApiKey, Site
from tests.support.streams import live_streams
from tests.support.tools import tool
from tests.support.wait import eventually, wait_until

from vllm_proxy.common.settings import LoadedSettings, Settings

STREAMS = 20
#: More than a test waits for.
ENDLESS_TOKENS = 500_000
MAX_BODY_BYTES = 256 * 1024
CAROL = ApiKey("sk-test-carol-0123456789abcdef", "carol", quota=10)


class NginxSite(Site):
    """`nginx` is the port that clients of nginx know; the site's own is the edge's."""

    def __init__(self) -> None:
        self.nginx = free_port()
        config = {
            "nginx": {"enabled": True, "host": "127.0.0.1", "port": self.nginx},
            "edge": {"max_body_bytes": MAX_BODY_BYTES, "max_header_bytes": 16 * 1024},
        }
        super().__init__(config, port=free_port(), keys=(ALICE, BOB, CAROL))

    def through_nginx(self, key: ApiKey = ALICE) -> Client:
        return Client(self.nginx, key.key)

    def nginx_workers(self) -> set[int]:
        master = psutil.Process(int((self.root / ".pids" / "nginx.pid").read_text()))
        return {child.pid for child in master.children()}


@pytest.fixture(scope="module")
def site() -> Iterator[NginxSite]:
    tool("nginx")
    site = NginxSite()
    try:
        said = proxyctl(site, "start")
        assert f"nginx  http://127.0.0.1:{site.nginx}/v1" in said
        yield site
    finally:
        proxyctl(site, "stop")
        site.remove()


async def test_tokens_come_before_the_answer_ends_and_a_client_may_leave(site: NginxSite) -> None:
    before = await site.settled_usage()
    async with live_streams(site.through_nginx(), 1, max_tokens=ENDLESS_TOKENS) as (stream,):
        await stream.wait_tokens(5)
        assert not stream.ended
    used = await site.settled_usage() - before
    assert 5 <= used.completion_tokens < ENDLESS_TOKENS, "the engine learns that the client has gone"


async def test_answers_and_errors_pass_unchanged(site: NginxSite) -> None:
    straight, through = site.client(), site.through_nginx()
    for key in ("", "sk-of-nobody"):
        head = {"authorization": key}
        one, other = [await client.request("GET", "/v1/models", headers=head) for client in (straight, through)]
        assert (one.status, one.body) == (other.status, other.body)
        assert other.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/nowhere", "/v1/models", "//v1/models", "/health"):
        one, other = [await client.request("GET", path) for client in (straight, through)]
        assert (one.status, one.body) == (other.status, other.body), path
    mine = {"x-request-id": "of-the-client"}
    assert (await through.request("GET", "/v1/models", headers=mine)).headers["x-request-id"] == "of-the-client"


async def test_a_refusal_by_a_limit_passes_with_its_headers(site: NginxSite) -> None:
    answer = await site.through_nginx(CAROL).chat(max_tokens=1000)
    assert answer.status == 429
    assert answer.error["code"] == "quota"
    assert answer.headers["x-should-retry"] == "false"
    assert "x-ratelimit-reason" in answer.headers


async def test_a_body_or_head_over_the_limit_is_answered_as_the_edge_does(site: NginxSite) -> None:
    for client in (site.client(), site.through_nginx()):
        long = await client.request("POST", "/v1/chat/completions", b" " * (MAX_BODY_BYTES + 1))
        assert (long.status, long.error["code"]) == (413, "request_too_large")
        tall = await client.request("GET", "/v1/models", headers={"x-long": "a" * 17_000})
        assert (tall.status, tall.error["code"]) == (431, "headers_too_large")
    padded = json.dumps({"model": "sim", "prompt": "a", "max_tokens": 1, "user": "x" * (MAX_BODY_BYTES - 200)})
    assert (await site.through_nginx().request("POST", "/v1/completions", padded.encode())).status == 200


async def test_a_reload_drops_no_stream(site: NginxSite) -> None:
    async with live_streams(site.through_nginx(), STREAMS, max_tokens=400) as streams:
        workers = site.nginx_workers()
        site.write_config({"edge": {"client_stall_timeout_s": 99}})
        assert "nginx reads its changed configuration" in await asyncio.to_thread(proxyctl, site, "start", "nginx")
        await eventually(lambda: site.nginx_workers() - workers, "workers with the new configuration")
        assert (await site.through_nginx().chat()).status == 200
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes)
    await eventually(lambda: not site.nginx_workers() & workers, "the old workers gone")


async def test_without_the_edge_it_says_when_to_come_again(site: NginxSite) -> None:
    await asyncio.to_thread(proxyctl, site, "stop", "edge")
    answer = await site.through_nginx().chat()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.error["code"] == "gateway_unavailable"
    await asyncio.to_thread(proxyctl, site, "start", "edge")
    assert (await site.through_nginx().chat()).status == 200


async def test_it_logs_requests_as_json_with_the_edges_request_id(site: NginxSite) -> None:
    answer = await site.through_nginx().chat()
    path = site.root / "logs" / "nginx-access.log"

    def logged() -> list[dict[str, object]]:
        return [line for line in log_lines(path) if line.get("request_id") == answer.headers["x-request-id"]]

    (line,) = await eventually(logged, "the request in nginx's log")
    assert (line["status"], line["path"], line["client"]) == (200, "/v1/chat/completions", "127.0.0.1")


class _Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the headers of the request."""

    def do_GET(self) -> None:
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _nginx_before_an_echo(root: Path, **nginx: object) -> Iterator[int]:
    """nginx on the port that it yields, in front of a server that shows what it is sent."""
    settings = Settings.model_validate({"nginx": {"host": "127.0.0.1", "port": free_port(), **nginx}})
    loaded = LoadedSettings(settings, root / "config" / "config.yaml", root)
    program = tool("nginx")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as echo:
        threading.Thread(target=echo.serve_forever, args=(0.05,), daemon=True).start()
        nginx_config.write(loaded, f"127.0.0.1:{echo.server_port}")
        nginx_config.check(loaded, program)
        with (root / "nginx.log").open("wb") as log:
            process = subprocess.Popen(nginx_config.command(loaded, program), stdout=log, stderr=log)
        try:
            wait_until(lambda: _accepts(settings.nginx.port), "nginx listening")
            yield settings.nginx.port
        finally:
            process.terminate()
            process.wait(10)
            echo.shutdown()


def _accepts(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(connection):
        with contextlib.suppress(OSError):
            connection.connect()
            return True
        return False


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_the_clients_address_is_what_nginx_sees_not_what_the_client_says(tmp_path: Path) -> None:
    claims = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    with _nginx_before_an_echo(tmp_path) as port:
        from_elsewhere = http.client.HTTPConnection("127.0.0.1", port, timeout=5, source_address=("127.0.0.2", 0))
        status, seen = _get(from_elsewhere, "/v1/models", claims)
        assert status == 200
        assert (seen["x-forwarded-for"], seen["x-real-ip"]) == ("127.0.0.2", "127.0.0.2")
        assert "forwarded" not in seen
        assert seen["host"] == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "path", ["/metrics", "/admin/reload-keys", "/admin", "/v1/../metrics", "//metrics", "/%6detrics"]
)
def test_what_is_for_operators_is_not_open_to_others(tmp_path: Path, path: str) -> None:
    with _nginx_before_an_echo(tmp_path) as port:
        elsewhere = http.client.HTTPConnection("127.0.0.1", port, timeout=5, source_address=("127.0.0.2", 0))
        status, answer = _get(elsewhere, path, {})
        assert (status, answer["error"]["code"]) == (403, "permission_denied")  # type: ignore[index]
        assert _get(http.client.HTTPConnection("127.0.0.1", port, timeout=5), path, {})[0] == 200


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "edge cert.pem", tmp_path / "edge.key"
    request = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subject = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [tool("openssl"), "req", *request, *subject, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    with _nginx_before_an_echo(tmp_path, tls_certificate=certificate, tls_key=key) as port:
        trust = ssl.create_default_context(cafile=str(certificate))
        status, seen = _get(http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=trust), "/health", {})
        assert (status, seen["x-forwarded-proto"]) == (200, "https")


async def test_a_client_of_nginx_that_reads_slowly_is_not_cut_off(site: NginxSite) -> None:
    async with await Connection.open(site.nginx, receive_buffer_bytes=4096) as connection:
        client = site.through_nginx()
        await connection.send(
            "POST", "/v1/chat/completions", headers=client.headers, body=client.chat_body(max_tokens=300)
        )
        assert connection.status == 200
        events = [event async for event in connection.events()]
        assert events[-1] == "[DONE]"
