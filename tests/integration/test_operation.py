"""What an operator asks of running services on the command line: status, top, logs, lora, config."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import StartCluster
from tests.support.adapter_files import write_adapter
from tests.support.cluster import ALICE, BOB, ApiKey, Cluster
from tests.support.command_line import ENVIRONMENT, cli, command_line
from tests.support.wait import wait_until

from vllm_proxy.cli.main import main

INTERVAL_S = "0.5"
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    config = {"users": {BOB.user: {"quota": 1}}, "vllm": {"extra_env": {"HF_TOKEN": "hf-secret"}}}
    return start_cluster(config, hosts=("sim", "spare"))


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def run(config: Path, *arguments: str) -> Ended:
    """The command in this process, which spares its start."""
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["--config", str(config), *arguments])
    finally:
        os.chdir(here)
    return Ended(status, out.getvalue(), err.getvalue())


def asked(cluster: Cluster, *arguments: str) -> Any:
    ended = run(cluster.config_path, *arguments, "--json")
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def chat(cluster: Cluster, key: ApiKey, model: str = "sim", request_id: str = "") -> int:
    client = cluster.client(key, model)
    if request_id:
        client.headers["x-request-id"] = request_id
    return asyncio.run(client.chat(max_tokens=2)).status


class Started:
    """A command that stays, on a terminal or not."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self._output = output
        self.shown = b""
        os.set_blocking(output, False)

    def read(self) -> bytes:
        with suppress(BlockingIOError, OSError):  # a terminal that nobody writes to any more is an error
            while piece := os.read(self._output, 65536):
                self.shown += piece
        return self.shown

    def wait_for(self, text: bytes) -> None:
        wait_until(lambda: text in self.read(), f"{text!r} to be shown", DEADLINE_S)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(DEADLINE_S)
        self.read()
        return status

    def errors(self) -> bytes:
        assert self.process.stderr is not None
        return self.process.stderr.read()


@contextmanager
def started(cluster: Cluster, *arguments: str, terminal: bool = False, **environment: str) -> Iterator[Started]:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        command_line(cluster.config_path, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "150", "LINES": "40", **environment},
    )
    os.close(theirs)
    try:
        yield Started(process, ours)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


class TestStatus:
    def test_services_hosts_models_load_and_refusals(self, cluster: Cluster) -> None:
        assert chat(cluster, BOB) == 429
        status = asked(cluster, "status")
        assert status["status"] == "ok"
        assert {row["service"]: row["state"] for row in status["services"]} == dict.fromkeys(
            ("auth", "router", "engine-sim", "engine-spare", "edge"), "serving"
        )
        assert {host["name"]: (host["state"], host["models"]) for host in status["hosts"]} == {
            "sim": ("serving", ["sim"]),
            "spare": ("serving", ["sim"]),
        }
        assert status["models"] == [{"name": "sim", "hosts": ["sim", "spare"]}]
        assert {"reason": "quota_exceeded", "limit": "quota", "count": 1} in status["refusals"]
        shown = run(cluster.config_path, "status")
        assert shown.status == 0
        assert "1 quota_exceeded (quota)" in shown.out
        assert "\x1b" not in shown.out

    def test_some_services_only(self, cluster: Cluster) -> None:
        status = asked(cluster, "status", "auth", "fastapi")
        assert [row["service"] for row in status["services"]] == ["auth", "edge"]
        unknown = run(cluster.config_path, "status", "nonsense")
        assert (unknown.status, unknown.out) == (2, "")
        assert "there is auth, router, engine-sim, engine-spare, edge" in unknown.err

    @pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
    def test_colours_on_a_terminal(self, cluster: Cluster, environment: dict[str, str], coloured: bool) -> None:
        with started(cluster, "status", "auth", terminal=True, **environment) as status:
            status.wait_for(b"serving")
            assert status.process.wait(DEADLINE_S) == 0
            assert (b"\x1b[32mserving" in status.read()) is coloured


class TestTop:
    async def test_rates_while_a_stream_runs(self, cluster: Cluster) -> None:
        client = cluster.client(ALICE)
        assert (await client.chat()).status == 200
        await cluster.settled_usage()
        async with await client.open_stream(max_tokens=4000):
            ended = await cli(cluster.config_path, "top", "--once", "--interval", INTERVAL_S, "--json")
        sample = json.loads(ended.stdout)
        total = sample["total"]
        assert total["completion_tokens_per_s"] > 0
        assert (total["in_flight"], sample["down"]) == (1, [])
        assert sum(host["completion_tokens_per_s"] for host in sample["hosts"]) == total["completion_tokens_per_s"]
        assert [key["running"] for key in sample["keys"] if key["user"] == ALICE.user] == [1]
        await cluster.settled_usage()

    def test_on_a_terminal_it_leaves_it_as_it_was(self, cluster: Cluster) -> None:
        with started(cluster, "top", "--interval", INTERVAL_S, terminal=True) as top:
            top.wait_for(b"HOST")
            shown = top.read()
            assert shown.startswith(b"\x1b[?1049h\x1b[?25l\x1b[?7l")
            assert top.interrupt() == 130
            assert top.shown.endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
            assert top.errors() == b""

    def test_elsewhere_it_prints_samples(self, cluster: Cluster) -> None:
        with started(cluster, "top", "--interval", INTERVAL_S) as top:
            wait_until(lambda: top.read().count(b"HOST") >= 2, "two samples", DEADLINE_S)
            assert top.interrupt() == 130
            assert b"\x1b" not in top.shown


class TestLogs:
    def test_one_requests_story(self, cluster: Cluster) -> None:
        assert chat(cluster, ALICE, request_id="story-1") == 200
        asyncio.run(cluster.settled_usage())

        def story() -> list[dict[str, Any]] | None:
            ended = run(cluster.config_path, "logs", "--request-id", "story-1", "--json")
            lines = [json.loads(line) for line in ended.out.splitlines()]
            return lines if len(lines) >= 3 else None

        lines = wait_until(story, "the story of a request", DEADLINE_S)
        assert {line["service"] for line in lines} >= {"edge", "auth"}
        assert any(line["service"].startswith("engine") for line in lines)
        assert sorted(line["time"] for line in lines) == [line["time"] for line in lines]
        assert {line["request_id"] for line in lines} == {"story-1"}

    def test_why_a_request_was_refused(self, cluster: Cluster) -> None:
        assert chat(cluster, BOB, request_id="refused-1") == 429

        def reason() -> str:
            return run(cluster.config_path, "logs", "--request-id", "refused-1").out

        shown = wait_until(reason, "the refusal in the logs", DEADLINE_S)
        assert "reason=QUOTA_EXCEEDED limit=quota" in shown

    def test_following_shows_what_comes(self, cluster: Cluster) -> None:
        with started(cluster, "logs", "edge", "-f", "--lines", "1", "--request-id", "coming-1") as logs:
            assert chat(cluster, ALICE, request_id="coming-1") == 200
            logs.wait_for(b"status=200")
            assert logs.interrupt() == 130
            assert logs.errors() == b""


class TestAdapters:
    def test_loaded_listed_unloaded(self, cluster: Cluster) -> None:
        write_adapter(cluster.root / "adapters" / "pirate")
        assert asked(cluster, "lora", "load", "adapters/pirate") == {
            "name": "pirate",
            "path": "adapters/pirate",
            "hosts": ["sim", "spare"],
        }
        (row,) = asked(cluster, "lora", "list")
        assert {name: row[name] for name in ("name", "state", "base", "hosts", "origin", "errors")} == {
            "name": "pirate",
            "state": "loaded",
            "base": "sim",
            "hosts": ["sim", "spare"],
            "origin": "declared",
            "errors": [],
        }
        assert chat(cluster, ALICE, "pirate") == 200
        assert asked(cluster, "lora", "unload", "pirate") == {"name": "pirate", "hosts": ["sim", "spare"]}
        assert asked(cluster, "lora", "list") == []
        audit = asked(cluster, "audit", "--action", "adapter.")
        assert [(row["action"], row["target"], row["outcome"]) for row in audit] == [
            ("adapter.unload", "pirate", "ok"),
            ("adapter.load", "pirate", "ok"),
        ]

    def test_a_bad_path_gives_the_hosts_reason(self, cluster: Cluster) -> None:
        for path, said in (("adapters/nowhere", "is not a folder"), ("/etc", "does not lie under an allowed root")):
            failed = run(cluster.config_path, "lora", "load", path)
            assert (failed.status, failed.out) == (2, "")
            assert failed.err.startswith("vllm-proxy: Host s")
            assert said in failed.err
        missing = run(cluster.config_path, "lora", "unload", "nobody")
        assert missing.status == 1


class TestConfig:
    def test_shown_with_secrets_masked(self, cluster: Cluster) -> None:
        settings = asked(cluster, "config", "show")
        assert settings["fastapi_port"] == cluster.port
        assert settings["vllm"]["extra_env"] == {"HF_TOKEN": "***"}

    def test_a_bad_file_names_its_key(self, cluster: Cluster, tmp_path: Path) -> None:
        good = run(cluster.config_path, "config", "check")
        assert (good.status, good.out) == (0, f"{cluster.config_path}: good\n")
        bad = tmp_path / "config.yaml"
        bad.write_text("rate_limit: {qps: -1}\nfrobnicate: 1\n")
        checked = run(bad, "config", "check")
        assert checked.status == 2
        first, second = checked.err.splitlines()
        assert "rate_limit.qps: " in first
        assert second.endswith("frobnicate: unknown key")


class TestReload:
    @pytest.fixture(autouse=True)
    def restored(self, cluster: Cluster) -> Iterator[None]:
        before = cluster.config_path.read_text()
        yield
        cluster.config_path.write_text(before)
        assert run(cluster.config_path, "reload").status == 0

    def in_force(self, cluster: Cluster) -> dict[str, Any]:
        return {row["service"]: row for row in asked(cluster, "config", "show", "--effective")["services"]}

    def test_what_can_be_is_put_in_force_and_the_rest_named(self, cluster: Cluster) -> None:
        changed = {**cluster.config, "rate_limit": {"qps": 77.0}, "fastapi_workers": 2}
        cluster.config_path.write_text(json.dumps(changed))
        rows = {row["service"]: row for row in asked(cluster, "reload")["services"]}
        assert rows.keys() == {"auth", "router", "engine-sim", "engine-spare", "edge"}
        assert {row["error"] for row in rows.values()} == {None}
        assert rows["edge"]["needs_restart"] == [{"setting": "fastapi_workers", "restart": "edge"}]
        services = self.in_force(cluster)
        assert services["auth"]["settings"]["rate_limit"]["qps"] == 77
        assert services["auth"]["differs"] == []
        assert services["edge"]["differs"] == [
            {"setting": "fastapi_workers", "in_force": 1, "file": 2, "needs": "restart"}
        ]

    def test_a_bad_file_changes_nothing(self, cluster: Cluster) -> None:
        cluster.config_path.write_text(json.dumps({**cluster.config, "log_level": "DEBUG", "frobnicate": 1}))
        failed = run(cluster.config_path, "reload")
        assert (failed.status, failed.out) == (2, "")
        assert "frobnicate: unknown key" in failed.err
        cluster.config_path.write_text(json.dumps(cluster.config))
        assert {row["settings"]["log_level"] for row in self.in_force(cluster).values()} == {"INFO"}

    def test_how_much_a_service_logs(self, cluster: Cluster) -> None:
        (edge,) = asked(cluster, "log-level", "edge", "debug")
        assert (edge["service"], edge["level"], edge["error"]) == ("edge", "DEBUG", None)
        asked(cluster, "log-level", "edge", "configured")
        assert {row["level"] for row in asked(cluster, "log-level")} == {"INFO"}


def test_a_service_that_is_down_is_a_row(cluster: Cluster) -> None:
    """The last one here."""
    cluster.router.stop()
    cluster.hosts["spare"].stop()
    ended = run(cluster.config_path, "status", "--json")
    status = json.loads(ended.out)
    assert (ended.status, ended.err, status["status"]) == (3, "", "degraded")
    states = {row["service"]: row["state"] for row in status["services"]}
    assert states == {
        "auth": "serving",
        "router": "stopped",
        "engine-sim": "serving",
        "engine-spare": "stopped",
        "edge": "serving",
    }
    sample = asked(cluster, "top", "--once", "--interval", INTERVAL_S)
    assert sample["down"] == ["router", "engine-spare"]
    assert run(cluster.config_path, "lora", "list").status == 3
    reloaded = run(cluster.config_path, "reload", "--json")
    assert reloaded.status == 3
    errors = {row["service"]: row["error"] for row in json.loads(reloaded.out)["services"]}
    assert errors == {**dict.fromkeys(states), "router": "does not answer", "engine-spare": "does not answer"}
