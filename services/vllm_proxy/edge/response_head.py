"""The headers of an answer: the engine's, less what is not for the client, plus what the edge adds."""

from __future__ import annotations

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


def client_headers(engine_headers: HeaderList, own_headers: HeaderList) -> tuple[HeaderList, bool]:
    """The headers that the client gets, and whether they announce a stream of events."""
    kept = [pair for pair in engine_headers if pair[0] not in _DROPPED and not pair[0].startswith(_CORS)]
    named = dict(kept)
    is_event_stream = named.get(b"content-type", b"").startswith(EVENT_STREAM)
    kept += own_headers
    if is_event_stream:
        # Proxies on the way must neither gather events nor keep them.
        kept.append((b"x-accel-buffering", b"no"))
        if b"cache-control" not in named:
            kept.append((b"cache-control", b"no-cache"))
    return kept, is_event_stream
