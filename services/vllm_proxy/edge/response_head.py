"""The head of an answer: the engine's status and headers, less what is not for the client, plus what the edge adds."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_proxy.edge.errors import HeaderList

#: The engine's headers that do not pass: those of one hop, those that are the edge's to say, and CORS.
_DROPPED = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"),
        *(b"trailers", b"transfer-encoding", b"upgrade", b"server", b"date", b"x-request-id"),
    )
)
_CORS = b"access-control-"
EVENT_STREAM = b"text/event-stream"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    status: int
    headers: HeaderList
    is_event_stream: bool
    #: The announced length of the body; -1 if there is none.
    body_bytes: int


def response_head(status: int, engine_headers: HeaderList, own_headers: HeaderList) -> ResponseHead:
    kept = [pair for pair in engine_headers if pair[0] not in _DROPPED and not pair[0].startswith(_CORS)]
    kept += own_headers
    named = dict(kept)
    is_event_stream = named.get(b"content-type", b"").startswith(EVENT_STREAM)
    if is_event_stream:
        # Proxies on the way must neither gather events nor keep them.
        kept.append((b"x-accel-buffering", b"no"))
        if b"cache-control" not in named:
            kept.append((b"cache-control", b"no-cache"))
    length = named.get(b"content-length", b"")
    return ResponseHead(status, kept, is_event_stream, int(length) if length.isdigit() else -1)
