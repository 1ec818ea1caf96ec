"""One request of a client, as its connection hands it over, and the budget that all request bodies share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_proxy.common.errors import NoCapacity, RequestTooLarge, ServiceError
from vllm_proxy.edge.errors import HeaderList
from vllm_proxy.edge.http_response import HttpResponse

if TYPE_CHECKING:
    from vllm_proxy.edge.http_connection import HttpConnection


class BodyBudget:
    """What a worker may hold of request bodies, all together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def check(self, more_bytes: int) -> None:
        """Raises NoCapacity if so many more would be too many."""
        if self.used_bytes + more_bytes > self.limit_bytes:
            raise NoCapacity("The gateway holds as many request bodies as it may. Try again.", retry_after_s=1)


class HttpRequest:
    """`headers` has the last of equal names, `header_list` has all; names are lower-case."""

    __slots__ = (
        "_budget",
        "_held_bytes",
        "_pieces",
        "body_limit_bytes",
        "client_host",
        "complete",
        "header_list",
        "headers",
        "http_version",
        "keep_alive",
        "method",
        "path",
        "query",
        "received_bytes",
        "refusal",
        "response",
    )

    def __init__(
        self,
        connection: HttpConnection,
        budget: BodyBudget,
        method: str,
        path: str,
        query: bytes,
        http_version: str,
        header_list: HeaderList,
        client_host: str | None,
        keep_alive: bool,
    ) -> None:
        self.method = method
        #: As the client wrote it, byte for byte.
        self.path = path
        self.query = query
        self.http_version = http_version
        self.header_list = header_list
        self.headers: dict[bytes, bytes] = dict(header_list)
        #: None: not over IP.
        self.client_host = client_host
        #: Whether another request may follow on the connection.
        self.keep_alive = keep_alive
        #: Why it will not be served. What still comes of its body is dropped.
        self.refusal: ServiceError | None = None
        #: Whether the last byte of the body has come.
        self.complete = False
        self.body_limit_bytes = 0
        #: Of the body, what was dropped included.
        self.received_bytes = 0
        self._held_bytes = 0
        self._pieces: list[bytes] = []
        self._budget = budget
        self.response = HttpResponse(connection, self)

    @property
    def origin(self) -> dict[str, Any]:
        """`client` and `headers` as an ASGI scope has them."""
        client = None if self.client_host is None else (self.client_host, 0)
        return {"client": client, "headers": self.header_list}

    @property
    def body(self) -> bytes:
        """What has come of it. Empty after `drop_body`."""
        pieces = self._pieces
        if len(pieces) > 1:
            pieces[:] = [b"".join(pieces)]
        return pieces[0] if pieces else b""

    def replace_body(self, body: bytes) -> None:
        """Raises NoCapacity for a larger one that cannot be held."""
        more_bytes = len(body) - self._held_bytes
        if more_bytes > 0:
            self._budget.check(more_bytes)
        self._budget.used_bytes += more_bytes
        self._held_bytes = len(body)
        self._pieces = [body]

    def hold(self, more_bytes: int) -> None:
        """Counts what a body is being unpacked to, until `replace_body`. Raises NoCapacity."""
        self._budget.check(more_bytes)
        self._budget.used_bytes += more_bytes
        self._held_bytes += more_bytes

    def check_announced_body(self) -> None:
        """Raises RequestTooLarge or NoCapacity for a body that cannot be taken, before it comes."""
        announced = self.headers.get(b"content-length")
        if announced is not None:
            self._check(int(announced))

    def add_body(self, piece: bytes) -> None:
        """Raises RequestTooLarge or NoCapacity for what cannot be taken."""
        size = len(piece)
        self._check(size)
        self._pieces.append(piece)
        self.received_bytes += size
        self._held_bytes += size
        self._budget.used_bytes += size

    def drop_body(self) -> None:
        """Frees the body: as soon as nobody needs it, and at the end of the request."""
        if self._held_bytes:
            self._budget.used_bytes -= self._held_bytes
            self._held_bytes = 0
            self._pieces = []

    def _check(self, more_bytes: int) -> None:
        if self.received_bytes + more_bytes > self.body_limit_bytes:
            raise RequestTooLarge(f"The request body is larger than {self.body_limit_bytes} bytes.")
        self._budget.check(more_bytes)
