"""Where Redis or Valkey is, as `auth.store` names it, and a client for it.

    redis://[user:password@]host[:port][/db]      one server; rediss:// with TLS
    unix://[user:password@]/path[?db=0]           one server, by its socket
    redis+sentinel://[user:password@]h1[:port],h2[:port]/service[/db]
    redis+cluster://[user:password@]h1[:port],h2[:port]     rediss+… likewise, with TLS

The password may stand in the environment instead (VLLM_PROXY_REDIS_PASSWORD). It is in no message of this module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from vllm_proxy.common.settings import REDIS_PASSWORD_VARIABLE, ConfigError

_PORT = 6379
_SENTINEL_PORT = 26379
#: Nothing is tried twice by the client: the store does, and knows what may be.
_ONCE: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}

#: What Redis answers when it cannot do now what it could before and may again.
_NOT_NOW = (ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)
_NOT_NOW_CODES = ("MISCONF ", "NOREPLICAS ", "BUSY ")
#: What a call raises when Redis cannot be reached, or answers an error; `is_outage` tells which of them pass.
FAULTS = (RedisConnectionError, RedisTimeoutError, RedisClusterException, MasterNotFoundError, ResponseError, OSError)

Client = Redis | RedisCluster


def is_outage(error: BaseException) -> bool:
    """Whether it says nothing of the call, which may be repeated as it is."""
    if isinstance(error, _NOT_NOW) or not isinstance(error, ResponseError):
        return True
    return str(error).startswith(_NOT_NOW_CODES)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    kind: str
    tls: bool
    nodes: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    db: int
    #: Of a Unix socket.
    path: str = ""
    #: What the sentinels watch.
    service: str = ""

    def __str__(self) -> str:
        """Without the password."""
        scheme = "unix" if self.kind == "unix" else f"redis{'s' if self.tls else ''}{self.kind and '+' + self.kind}"
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{scheme}://{where}" + (f"/{self.service}" if self.service else "") + (f"/{self.db}" if self.db else "")


def parse(url: str) -> RedisUrl:
    """Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if scheme == "unix":
        kind = "unix"
    elif base not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
        raise ConfigError(f"auth.store: {scheme}:// is not known; redis://, rediss://, unix://, redis+sentinel:// or "
                          "redis+cluster://")  # fmt: skip
    credentials, at, rest = rest.rpartition("@")
    username, _, password = credentials.partition(":") if at else ("", "", "")
    parts = urlsplit(f"//{rest}") if kind != "unix" else urlsplit(rest)
    try:
        db = int((parse_qs(parts.query).get("db") or ["0"])[0])
        if kind == "unix":
            return RedisUrl(kind, False, (), *_credentials(username, password), db, path=parts.path)
        names = [unquote(part) for part in parts.path.split("/") if part]
        service = names.pop(0) if kind == "sentinel" and names else ""
        db = int(names.pop(0)) if names else db
        nodes = tuple(_node(node, _SENTINEL_PORT if kind == "sentinel" else _PORT) for node in parts.netloc.split(","))
    except ValueError:
        raise ConfigError("auth.store: not a URL of Redis (a port or a database is no number)") from None
    if names or (kind == "sentinel" and not service) or (kind == "cluster" and db) or (not kind and len(nodes) > 1):
        raise ConfigError(
            "auth.store: redis://host:port/db, redis+sentinel://host,host/service or redis+cluster://host,host"
        )
    return RedisUrl(kind, base == "rediss", nodes, *_credentials(username, password), db, service=service)


def _credentials(username: str, password: str) -> tuple[str | None, str | None]:
    secret = unquote(password) or os.environ.get(REDIS_PASSWORD_VARIABLE, "")
    return unquote(username) or None, secret or None


def _node(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default_port)
    if not host:
        raise ValueError(text)
    return host.strip("[]"), int(port)


def connect(url: RedisUrl, timeout_s: float) -> Client:
    """A client that connects when it is first used. No call on it takes longer than `timeout_s` for its answer."""
    options: dict[str, Any] = {
        "username": url.username,
        "password": url.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        **_ONCE,
    }
    if url.kind == "unix":
        return Redis(unix_socket_path=url.path, db=url.db, **options)
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.nodes]
        return RedisCluster(startup_nodes=nodes, ssl=url.tls, **options)
    if url.kind == "sentinel":
        watched = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "ssl": url.tls, **_ONCE}
        sentinel = Sentinel(url.nodes, sentinel_kwargs=watched, ssl=url.tls, db=url.db, **options)
        master: Redis = sentinel.master_for(url.service)
        return master
    ((host, port),) = url.nodes
    return Redis(host=host, port=port, db=url.db, ssl=url.tls, **options)


async def disconnect(client: Client) -> None:
    await client.aclose()
    sentinel = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for watcher in sentinel.sentinels if sentinel is not None else ():
        await watcher.aclose()
