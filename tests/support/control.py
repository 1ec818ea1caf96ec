"""What tests ask auth and router by gRPC: the books, the leases, the hosts."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import orjson

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2, router_pb2_grpc
from vllm_proxy.common.rpc.address import dial_target

CALL_TIMEOUT_S = 5.0
#: A call that runs into a service's death is asked again; all of them only read.
_RETRY = {"maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "0.5s", "backoffMultiplier": 2}
_ASK_AGAIN = orjson.dumps(
    {"methodConfig": [{"name": [{}], "retryPolicy": {**_RETRY, "retryableStatusCodes": ["UNAVAILABLE"]}}]}
).decode()


@dataclass(frozen=True, slots=True)
class Usage:
    """What the book says of one user, or a difference of two such."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    running: int = 0
    reserved_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def is_settled(self) -> bool:
        return self.running == 0 and self.reserved_tokens == 0

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(
            self.prompt_tokens - earlier.prompt_tokens,
            self.completion_tokens - earlier.completion_tokens,
            self.requests - earlier.requests,
            self.running - earlier.running,
            self.reserved_tokens - earlier.reserved_tokens,
        )


class Control:
    """Blocking stubs of auth and router. An answer that does not come raises grpc.RpcError."""

    def __init__(self, auth_target: str, router_target: str) -> None:
        options: list[tuple[str, object]] = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.service_config", _ASK_AGAIN),
        ]
        self._channels = [
            grpc.insecure_channel(dial_target(target), options=options) for target in (auth_target, router_target)
        ]
        self.auth = auth_pb2_grpc.AuthServiceStub(self._channels[0])
        self.router = router_pb2_grpc.RouterServiceStub(self._channels[1])

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def usage(self, user: str) -> Usage:
        answer = self.auth.ListKeys(auth_pb2.ListKeysRequest(user=user), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        (key,) = answer.keys
        return Usage(key.prompt_tokens, key.completion_tokens, key.requests, key.running, key.reserved_tokens)

    def open_leases(self) -> list[auth_pb2.Lease]:
        answer = self.auth.ListLeases(auth_pb2.ListLeasesRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        return list(answer.leases)

    def hosts(self) -> dict[str, router_pb2.Host]:
        answer = self.router.ListHosts(router_pb2.ListHostsRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        return {host.name: host for host in answer.hosts}

    def serving_hosts(self) -> set[str]:
        return {name for name, host in self.hosts().items() if host.state == router_pb2.HOST_STATE_SERVING}

    def declared_adapters(self) -> list[str]:
        answer = self.router.ListAdapters(router_pb2.ListAdaptersRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        return [row.adapter.name for row in answer.adapters]

    def in_flight(self) -> int:
        """Requests that the engine hosts hold, by their last heartbeat."""
        return sum(host.load.in_flight for host in self.hosts().values())
