"""Media URLs into the operator's own network."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.edge.media_urls import MAX_HOSTS, refuse_private

NAMES = {
    "pictures.example": ["93.184.216.34", "2606:2800:220:1::1"],
    "inside.example": ["10.1.2.3"],
    "both.example": ["93.184.216.34", "127.0.0.1"],
    "2130706433": ["127.0.0.1"],
    "0x7f.1": ["127.0.0.1"],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(host: str, port: Any, **_: Any) -> Any:
        if host in NAMES:
            return [(0, 0, 0, "", (address, 0)) for address in NAMES[host]]
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        except OSError:
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None
        return [(0, 0, 0, "", (host, 0))]

    async def loop_look_up(self: Any, host: str, port: Any, **more: Any) -> Any:
        return await look_up(host, port, **more)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", loop_look_up)


def bodies(url: str) -> list[Any]:
    """Wherever an engine might take it from."""
    return [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        {"messages": [{"role": "user", "content": [{"image_url": url}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": url}}]}]},
        {"documents": {"content": [{"type": "image_url", "image_url": {"url": url}}]}},
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "https://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fd00::1]:8000/",
        "HTTP://192.168.1.1",
        " http://192.168.1.1",
        "http://user:password@172.16.0.1/",
        "http://inside.example/",
        "http://both.example/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://pictures.example\\@10.0.0.1/",
        "http:///x.png",
        "http://pictures.example\t.x/",
    ],
)
async def test_private_addresses_are_refused(url: str) -> None:
    for body in bodies(url):
        for text in (json.dumps(body), json.dumps(body).replace("/", "\\/"), json.dumps(body).replace("u", "\\u0075")):
            with pytest.raises(InvalidRequest):
                await refuse_private(text.encode())


@pytest.mark.parametrize(
    "url",
    ["https://pictures.example/x.png", "http://nowhere.example/", "data:image/png;base64,AAAA", "file:///etc/passwd"],
)
async def test_public_ones_and_the_engines_own_business_pass(url: str) -> None:
    for body in bodies(url):
        await refuse_private(json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "what is at http://10.0.0.1/ and its url?"}]},
        {"tools": [{"function": {"parameters": {"properties": {"url": {"type": "string"}}}}}], "x": "http://10.0.0.1"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "http://10.0.0.1/", "url": None}]}]},
        {"documents": [{"title": "t", "url": "http://10.0.0.1/"}]},
    ],
)
async def test_text_is_no_media(body: Any) -> None:
    await refuse_private(json.dumps(body).encode())


async def test_what_is_not_json_is_the_engines_business() -> None:
    await refuse_private(b'{"url": "http://10.0.0.1')
    await refuse_private(b"\\u0075" + b"[" * 100_000)
    with pytest.raises(InvalidRequest):
        await refuse_private(b'{"x": NaN, "image_url": "http://10.0.0.1"}')


async def test_one_request_does_not_look_up_the_whole_world() -> None:
    urls = [{"image_url": f"http://{number}.example/"} for number in range(MAX_HOSTS + 1)]
    with pytest.raises(InvalidRequest, match="many"):
        await refuse_private(json.dumps(urls).encode())
