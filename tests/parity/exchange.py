"""Asks a server and keeps what it answered, byte for byte; and makes two answers comparable."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tests.parity.corpus import Ask

CONCURRENCY = 8
#: A busy engine tells of two steps in one event now and then.
STREAM_TRIES = 5
ANSWER_DEADLINE_S = 60.0

#: Said by each hop for itself.
HOP_HEADERS = frozenset({"date", "server", "connection", "transfer-encoding", "content-length"})
_ID = re.compile(
    rb'(?<=["/ `])(chatcmpl-tool|chatcmpl|cmpl|resp|msg|rs|fc|call|toolu|score|generative-scoring|tokenize|modelperm)'
    rb"([-_])[0-9A-Za-z-]{8,}"
)
#: One that the client chose; the gateway mints all that the engine knows.
_CHOSEN_ID = re.compile(rb'("id":"(?:chatcmpl|cmpl)-)mine"')
_TIME = re.compile(rb'("(?:created|created_at|completed_at)": ?)[0-9.]+')


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def events(self) -> Sequence[bytes]:
        """Normalised server-sent events, each with its end."""
        return [event + b"\n\n" for event in self.normal_body.split(b"\n\n")]

    @property
    def normal_body(self) -> bytes:
        """Without what differs between two askings of one server: ids and times."""
        body = _ID.sub(rb"\1\2ID", self.body)
        body = _CHOSEN_ID.sub(rb'\1ID"', body)
        return _TIME.sub(rb"\g<1>0", body)

    @property
    def own_headers(self) -> Mapping[str, str]:
        return {name: value for name, value in self.headers.items() if name not in HOP_HEADERS}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one server answered, by the ask's name, and the schema that it publishes."""

    answers: Mapping[str, Answer]
    openapi: Mapping[str, Any]


async def ask_all(url: str, asks: Sequence[Ask], headers: Mapping[str, str]) -> dict[str, Answer]:
    """Every answer by name. Asks that may go together go last, several at a time. A stream is asked for until two in
    succession are cut into the same events."""
    answers: dict[str, Answer] = {}
    limits = httpx.Limits(max_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_DEADLINE_S, limits=limits) as http:

        async def once(ask: Ask) -> Answer:
            request = http.build_request(ask.method, ask.path, content=ask.body, headers={**headers, **ask.headers})
            answer = await http.send(request)
            return Answer(answer.status_code, dict(answer.headers), answer.content)

        async def one(ask: Ask) -> None:
            answer = await once(ask)
            for _ in range(STREAM_TRIES if answer.is_stream else 0):
                again = await once(ask)
                if again.normal_body == answer.normal_body:
                    break
                answer = again
            answers[ask.name] = answer

        for ask in asks:
            if not ask.together:
                await one(ask)
        async with asyncio.TaskGroup() as tasks:
            for ask in asks:
                if ask.together:
                    tasks.create_task(one(ask))
    return answers
