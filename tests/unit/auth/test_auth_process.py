"""The service as a process: its first start, kill -9 after a settlement, limits that follow config.yaml, its end."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import orjson
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.wait import wait_until

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.auth.keys import DEFAULT_KEY, digest_of

DEADLINE_S = 30


class Auth:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "auth.log"
        self.keys_file = root / "config" / "api_keys.json"
        self.configure()
        self.address = f"unix:{root}/.run/auth.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, **settings: object) -> None:
        path = self.root / "config" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(settings))

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm_proxy.auth", "--config", str(self.root / "config" / "config.yaml")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        wait_until(self.serving, "the auth service serves", DEADLINE_S)

    def serving(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        with grpc.insecure_channel(self.address) as channel:
            try:
                health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
        return health.status == health_pb2.HealthCheckResponse.SERVING

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def call(self, method: str, request: object) -> object:
        with grpc.insecure_channel(self.address) as channel:
            return getattr(auth_pb2_grpc.AuthServiceStub(channel), method)(request, timeout=DEADLINE_S)

    def admit(self, local: bool = True) -> pb.AdmitResponse:
        return self.call(
            "Admit",
            pb.AdmitRequest(
                api_key_sha256=digest_of(DEFAULT_KEY), operation=pb.OPERATION_INFERENCE, request_id="req-1",
                client_is_local=local, prompt_tokens_estimate=10, response_tokens=90,
            ),
        )  # fmt: skip

    def settle(self, lease_id: str) -> pb.SettleResponse:
        usage = pb.TokenUsage(prompt_tokens=10, completion_tokens=7)
        return self.call("Settle", pb.SettleRequest(lease_id=lease_id, usage=usage, outcome=pb.OUTCOME_FINISHED))


@pytest.fixture
def auth() -> Iterator[Auth]:
    root = Path(tempfile.mkdtemp(prefix="auth"))
    service = Auth(root)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.end(signal.SIGKILL)
    shutil.rmtree(root)


def test_from_the_first_start_to_the_end(auth: Auth) -> None:
    auth.start()
    log = auth.log.read_text()
    lines = [orjson.loads(line) for line in log.splitlines()]
    assert any("admin key" in line["event"] for line in lines)
    assert any("DEFAULT API KEY" in line["event"] for line in lines)
    assert all("sk-" not in orjson.dumps(line).decode() for line in lines)
    assert "sk-admin-" in auth.keys_file.read_text() and auth.keys_file.stat().st_mode & 0o777 == 0o600

    assert auth.admit(local=False).reason == "INVALID_API_KEY"
    settled, running = auth.admit(), auth.admit()
    assert auth.settle(settled.lease_id).applied
    # A line is written at the end of the loop's turn, which may be after its answer.
    wait_until(lambda: '"settled"' in auth.log.read_text(), "the settlement is logged", DEADLINE_S)
    assert auth.end(signal.SIGKILL) == -signal.SIGKILL

    auth.start()
    keys = {key.user: key for key in auth.call("ListKeys", pb.ListKeysRequest()).keys}
    default = keys["default"]
    assert (default.prompt_tokens, default.completion_tokens, default.requests) == (10, 7, 1)
    assert (default.running, default.reserved_tokens) == (1, 100)
    assert auth.settle(settled.lease_id).applied, "a repeated settlement is acknowledged"
    assert auth.settle(running.lease_id).applied
    keys = {key.user: key for key in auth.call("ListKeys", pb.ListKeysRequest()).keys}
    assert (keys["default"].completion_tokens, keys["default"].running) == (14, 0)

    auth.configure(rate_limit={"concurrent": 1})
    wait_until(lambda: auth.admit().limit_name == "concurrency", "the new limit is in force", DEADLINE_S)
    auth.configure(rate_limit={"concurrent": "many"})
    wait_until(lambda: "configuration not applied" in auth.log.read_text(), "the bad file is refused", DEADLINE_S)
    assert auth.admit().limit_name == "concurrency"

    assert auth.end(signal.SIGTERM) == 0
    log = auth.log.read_text()
    lines = [orjson.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert "sk-admin-" not in log
    assert [line["event"] for line in lines].count("settled") == 2
    (refused, *_) = [line for line in lines if line["event"] == "refused"]
    assert (refused["reason"], refused["request_id"], refused["user"]) == ("INVALID_API_KEY", "req-1", "default")
    assert not any(line["level"] in ("ERROR", "CRITICAL") for line in lines if "configuration" not in line["event"])


def test_a_start_that_cannot_be_says_why(auth: Auth) -> None:
    auth.keys_file.write_text("{")
    command = [sys.executable, "-m", "vllm_proxy.auth", "--config", str(auth.root / "config" / "config.yaml")]
    ended = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 2
    (line,) = [orjson.loads(line) for line in ended.stderr.splitlines()]
    assert "api_keys_file" in line["detail"] and "line 1" in line["detail"]
