"""Streams that run while a test does something to the services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from tests.support.http_client import Client, Connection, StreamOutcome, finish
from tests.support.wait import eventually


class LiveStream:
    """One streamed chat completion, read in a task of its own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.outcome = StreamOutcome(connection.status)
        self._task = asyncio.create_task(finish(connection, self.outcome))

    @classmethod
    async def start(cls, client: Client, *, max_tokens: int, **more: Any) -> Self:
        """Returns once the head of the response is there."""
        return cls(await client.open_stream(max_tokens=max_tokens, **more))

    async def wait_tokens(self, count: int, deadline_s: float = 10.0) -> None:
        """Waits until so many events have come, the opening one not counted."""
        await eventually(
            lambda: len(self.outcome.events) > count or self._task.done(), f"{count} tokens of a stream", deadline_s
        )
        assert len(self.outcome.events) > count, f"the stream ended early: {self.outcome}"

    @property
    def tokens(self) -> int:
        """Tokens that the client has: content, one a chunk in the simulator."""
        return sum(
            1
            for chunk in self.outcome.chunks
            if any(c.get("delta", {}).get("content") for c in chunk.get("choices", ()))
        )

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def end(self, deadline_s: float = 30.0) -> StreamOutcome:
        """Waits for the end of the response, however it ends, and closes the connection."""
        async with asyncio.timeout(deadline_s):
            await self._task
        self.connection.close()
        return self.outcome

    async def leave(self) -> None:
        """The client is gone in mid-response."""
        self._task.cancel()
        self.connection.close()
        with suppress(asyncio.CancelledError):
            await self._task


@asynccontextmanager
async def live_streams(client: Client, count: int, *, max_tokens: int, **more: Any) -> AsyncIterator[list[LiveStream]]:
    """So many streams, each with its first token. What still runs at the end leaves."""
    streams: list[LiveStream] = []

    async def start() -> None:
        streams.append(await LiveStream.start(client, max_tokens=max_tokens, **more))

    try:
        await asyncio.gather(*(start() for _ in range(count)))
        await asyncio.gather(*(stream.wait_tokens(1) for stream in streams))
        yield streams
    finally:
        for stream in streams:
            await stream.leave()
