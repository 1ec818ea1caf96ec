"""What `status` and `top` make of what services and the supervisor say."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vllm_proxy.api.common.v1.maintenance_pb2 import GetInfoResponse
from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.cli.fleet import DOWN, NOT_READY, SERVING, Fleet
from vllm_proxy.cli.output import Output
from vllm_proxy.cli.process_rows import rows
from vllm_proxy.cli.router_views import adapter_views
from vllm_proxy.cli.samples import Samples
from vllm_proxy.cli.services import Service
from vllm_proxy.cli.status import span
from vllm_proxy.cli.supervised import ProcessState
from vllm_proxy.cli.top_sample import KeyUse, Moment, compare
from vllm_proxy.common.settings import LoadedSettings, Settings

AUTH = Service("auth", "unix:.run/auth.sock", (Path("logs/auth.log"),))


def process(state: str, pid: int = 0, fault: str = "") -> ProcessState:
    return ProcessState("auth", "auth", state, pid, 0, fault)


@pytest.mark.parametrize(
    ("supervisor", "says", "shown", "pid"),
    [
        (process("RUNNING", 7), SERVING, SERVING, 7),
        (process("RUNNING", 7), DOWN, NOT_READY, 7),
        (process("RUNNING", 7), NOT_READY, NOT_READY, 7),
        (process("STOPPING", 7), SERVING, "stopping", 7),
        (process("BACKOFF", fault="exit status 2"), DOWN, "backoff", None),
        (process("STOPPED"), DOWN, "stopped", None),
        (None, DOWN, "stopped", None),
        (None, SERVING, SERVING, None),  # on another machine, or under systemd
        (process("STOPPED"), SERVING, SERVING, None),
    ],
)
def test_the_state_of_a_process(
    tmp_path: Path, supervisor: ProcessState | None, says: str, shown: str, pid: int | None
):
    loaded = LoadedSettings(Settings(), tmp_path / "config.yaml", tmp_path)
    (row,) = rows(loaded, [AUTH], Fleet({"auth": says}), [supervisor] if supervisor else None)
    assert (row.state, row.pid, row.fault) == (shown, pid, supervisor.fault if supervisor else "")


@pytest.mark.parametrize(("host_name", "machine"), [(socket.gethostname(), ""), ("elsewhere", "elsewhere")])
def test_a_process_that_nobody_here_looks_after_says_itself_which_it_is(tmp_path: Path, host_name: str, machine: str):
    loaded = LoadedSettings(Settings(), tmp_path / "config.yaml", tmp_path)
    info = GetInfoResponse(pid=9, started_at_ms=1_000, now_ms=62_500, host_name=host_name)
    (row,) = rows(loaded, [AUTH], Fleet({"auth": SERVING}, info={"auth": info}), None)
    assert (row.pid, row.up_s, row.machine) == (9, 61, machine)


def test_adapters_that_are_wanted_and_those_that_are_there():
    there = pb.Model(name="pirate", base="m", path="/a/pirate", digest="d1", origin=pb.ADAPTER_ORIGIN_DECLARED)
    found = pb.Model(name="robot", base="m", path="/a/robot", origin=pb.ADAPTER_ORIGIN_RESOLVED)
    hosts = [
        pb.Host(name="b", models=[pb.Model(name="m"), there, found]),
        pb.Host(name="a", models=[pb.Model(name="m"), there]),
    ]
    declared = [
        pb.AdapterDeclaration(adapter=pb.AdapterSpec(name="pirate", path="/a/pirate"), loaded_on=["a", "b"]),
        pb.AdapterDeclaration(adapter=pb.AdapterSpec(name="broken", path="/a/x"), errors=["a: no such folder"]),
        pb.AdapterDeclaration(adapter=pb.AdapterSpec(name="early", path="/a/y")),
    ]
    assert [(a["name"], a["state"], a["base"], a["hosts"], a["origin"]) for a in adapter_views(hosts, declared)] == [
        ("broken", "failed", "", [], "declared"),
        ("early", "waiting", "", [], "declared"),
        ("pirate", "loaded", "m", ["a", "b"], "declared"),
        ("robot", "loaded", "m", ["b"], "resolved"),
    ]


def moment(at: float, ended: int, running: int, keys: dict[str, KeyUse] | None) -> Moment:
    metrics = Samples(
        f'vllm_proxy_engine_host_tokens_total{{kind="completion"}} {ended}\n'
        f"vllm_proxy_engine_host_running_completion_tokens {running}\n"
    )
    fleet = Fleet({"engine-a": SERVING, "auth": DOWN}, hosts=[pb.Host(name="a")], metrics={"engine-a": metrics})
    return Moment(at, fleet, keys)


@pytest.mark.parametrize(
    ("before", "now", "rate"),
    [
        ((100, 0), (100, 50), 25),  # a stream that has not ended
        ((100, 50), (160, 0), 5),  # it ended
        ((100, 50), (100, 0), 0),  # between the two, for a moment
        ((100, 50), (0, 30), 15),  # the host was started anew
    ],
)
def test_tokens_a_second(before: tuple[int, int], now: tuple[int, int], rate: float):
    sample = compare(moment(1, *before, None), moment(3, *now, None))
    (host,) = sample["hosts"]
    assert host["completion_tokens_per_s"] == sample["total"]["completion_tokens_per_s"] == rate
    assert (sample["down"], sample["total"]["requests_per_s"], sample["keys"]) == (["auth"], None, [])


def test_what_keys_use():
    earlier = {"k1": KeyUse(1, 100)}
    later = {"k1": KeyUse(2, 140, "alice", "", 1), "k2": KeyUse(1, 100, "bob", "", 0), "quiet": KeyUse(9, 900)}
    rows = compare(moment(0, 0, 0, earlier), moment(2, 0, 0, later))["keys"]
    assert [(row["id"], row["requests_per_s"], row["tokens_per_s"]) for row in rows] == [
        ("k2", 0.5, 50),
        ("k1", 0.5, 20),
    ]
    # Without a moment before, nothing is known of rates.
    rows = compare(moment(0, 0, 0, None), moment(2, 0, 0, later))["keys"]
    assert {row["tokens_per_s"] for row in rows} == {0}


@pytest.mark.parametrize(("seconds", "shown"), [(None, None), (61, "0:01:01"), (90_061, "1d 1:01:01")])
def test_how_long_it_is_up(seconds: int | None, shown: str | None):
    assert span(seconds) == shown


def test_a_column_that_is_empty_is_left_out(capsys: pytest.CaptureFixture[str]):
    Output(as_json=False).table(["A", "DETAIL", "N"], [["x", "", 1], ["y", "", None]])
    assert capsys.readouterr().out == "A  N\nx  1\ny  -\n"
