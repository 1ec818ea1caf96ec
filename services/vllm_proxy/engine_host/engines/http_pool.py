"""HTTP/1.1 to one engine over a pool of kept connections, with the engine's own key. Everything that shows that the
engine is not there comes out as EngineDied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from yarl import URL

from vllm_proxy.common.settings import EngineHttp
from vllm_proxy.engine_host.engines.base import EngineDied

#: Never sent unless asked for: the engine's answers pass as they are.
_NO_AUTOMATIC_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
#: A connection that the engine closed just when it was used again.
_STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
_READ_BUFFER_BYTES = 128 * 1024


class EngineSilent(EngineDied):
    """It took a question and did not answer in time: busy, or stuck."""


class HttpPool:
    """Open it in the event loop that uses it. Questions of the host's own never wait behind clients' requests."""

    def __init__(self, url: str, api_key: str | None, settings: EngineHttp) -> None:
        self.url = url
        self._base = URL(url)
        self._settings = settings
        self._key_header = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._clients: aiohttp.ClientSession | None = None
        self._own: aiohttp.ClientSession | None = None

    def open(self) -> None:
        self._clients = self._open(self._settings.max_connections)
        self._own = self._open(0)

    def _open(self, limit: int) -> aiohttp.ClientSession:
        settings = self._settings
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=settings.idle_connection_s),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTOMATIC_HEADERS,
            read_bufsize=_READ_BUFFER_BYTES,
            trust_env=False,
        )

    async def close(self) -> None:
        for session in (self._clients, self._own):
            if session is not None:
                await session.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        own: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer's head has come. Left early, the connection is closed, and so the engine stops. `own`: not for a
        client."""
        session = self._own if own else self._clients
        assert session is not None, "open"
        url = self._base.joinpath(path.lstrip("/"), encoded=True)
        if query:
            url = URL(f"{url}?{query}", encoded=True)
        for attempt in (1, 2):
            try:
                response = await session.request(
                    method,
                    url,
                    data=body or None,
                    headers={**(headers or {}), **self._key_header},
                    allow_redirects=False,
                )
                break
            except _STALE as e:
                if attempt == 2 or isinstance(e, aiohttp.ClientConnectorError):
                    raise EngineDied(self._away(e)) from None
            except (aiohttp.ClientError, TimeoutError) as e:
                raise EngineDied(self._away(e)) from None
        try:
            yield response
        except aiohttp.ClientError as e:
            raise EngineDied(self._away(e)) from None
        finally:
            if not response.content.at_eof():
                response.close()
            response.release()

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, bytes]:
        """A whole answer within `answer_timeout_s`. Raises EngineDied, EngineSilent."""
        headers = {"Content-Type": "application/json"} if content is not None else {}
        body = orjson.dumps(content) if content is not None else b""
        try:
            async with (
                asyncio.timeout(self._settings.answer_timeout_s),
                self.request(method, path, headers=headers, body=body, own=True) as response,
            ):
                return response.status, await response.read()
        except TimeoutError:
            raise EngineSilent(f"{self.url} does not answer within {self._settings.answer_timeout_s:g} s") from None

    def _away(self, error: BaseException) -> str:
        why = error.os_error.strerror if isinstance(error, aiohttp.ClientConnectorError) else str(error)
        return f"{self.url}: {why or type(error).__name__}"
