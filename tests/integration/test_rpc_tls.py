"""Mutual TLS between services, with certificates of a CA of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.certificates import CertificateAuthority

from vllm_proxy.common.rpc.channel import open_blocking_channel, open_channel
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE, ConfigError, Grpc, GrpcTls

NAME = "services.example"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("theirs"))


def settings(of: CertificateAuthority, trusts: CertificateAuthority, *subjects: str, name: str | None = None) -> Grpc:
    certificate, key = of.issue("service", *(subjects or ("IP:127.0.0.1",)))
    return Grpc(tls=GrpcTls(certificate=certificate, key=key, ca=trusts.certificate, server_name=name))


@pytest.fixture
async def server(ours: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RpcServer]:
    """Where other machines reach it, without a shared token."""
    monkeypatch.delenv(INTERNAL_TOKEN_VARIABLE, raising=False)
    server = RpcServer("0.0.0.0:0", settings(ours, ours, "IP:127.0.0.1", f"DNS:{NAME}"), ())
    await server.listen()
    await server.set_serving(True)
    yield server
    await server.server.stop(0)


async def serves(server: RpcServer, grpc_settings: Grpc) -> bool:
    """Raises grpc.RpcError."""
    channel = open_channel(f"127.0.0.1:{server.address.rpartition(':')[2]}", grpc_settings)
    async with channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_services_of_one_ca_reach_each_other(server: RpcServer, ours: CertificateAuthority) -> None:
    assert await serves(server, settings(ours, ours))


async def test_one_name_may_stand_in_all_certificates(server: RpcServer, ours: CertificateAuthority) -> None:
    assert await serves(server, settings(ours, ours, name=NAME))
    with pytest.raises(grpc.RpcError):
        await serves(server, settings(ours, ours, name="another.example"))


async def test_strangers_are_not_let_in(
    server: RpcServer, ours: CertificateAuthority, theirs: CertificateAuthority
) -> None:
    for stranger in (Grpc(), settings(theirs, ours)):
        with pytest.raises(grpc.RpcError) as refused:
            await serves(server, stranger)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_ca_is_told_nothing(
    server: RpcServer, ours: CertificateAuthority, theirs: CertificateAuthority
) -> None:
    with pytest.raises(grpc.RpcError):
        await serves(server, settings(ours, theirs))


def test_scripts_ask_over_it_too(ours: CertificateAuthority, tmp_path: Path) -> None:
    with open_blocking_channel("127.0.0.1:1", settings(ours, ours)) as channel, pytest.raises(grpc.RpcError) as refused:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("broken", ["certificate", "key", "ca"])
async def test_a_file_that_is_missing_names_itself(ours: CertificateAuthority, tmp_path: Path, broken: str) -> None:
    good = settings(ours, ours).tls
    grpc_settings = Grpc(tls=good.model_copy(update={broken: tmp_path / "nothing.pem"}))
    with pytest.raises(ConfigError, match=rf"grpc\.tls\.{broken}: .*nothing\.pem: No such file"):
        await RpcServer("127.0.0.1:0", grpc_settings, ()).listen()
    with pytest.raises(ConfigError, match=rf"grpc\.tls\.{broken}"):
        open_channel("127.0.0.1:1", grpc_settings)


async def test_a_unix_socket_stays_as_it_is(ours: CertificateAuthority, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    server = RpcServer(address, settings(ours, ours), ())
    await server.listen()
    await server.set_serving(True)
    async with open_channel(address, Grpc()) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await server.server.stop(0)
