"""Engines in processes of their own, run by the host (cli) or by others (attached), behind all services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import StartCluster
from tests.support.adapter_files import write_adapter
from tests.support.cluster import ADMIN, BOB, Cluster, free_port
from tests.support.site import Site
from tests.support.streams import LiveStream, live_streams
from tests.support.wait import eventually, wait_until

from vllm_proxy.common import pid_record
from vllm_proxy.common.pid_record import PidRecord

SERVER = Path(__file__).parents[1] / "support" / "sim_server.py"
SERVICES = Path(__file__).parents[2] / "services"
ENGINE_KEY = "sk-engine-own-key"
#: Requests that an engine's death meets are told within this time.
TOLD_S = 2.0
#: What is loaded or unloaded behind the host's back is noticed within this time.
NOTICED_S = 5.0
IN_TRANSIT_TOKENS = 50
BASE_CONFIG = {
    "engine_http": {"poll_s": 0.2},
    "engine_process": {"restart_min_s": 0.2, "stop_timeout_s": 5},
}


def start_cmd(port: int, *more: str) -> str:
    return " ".join([sys.executable, str(SERVER), "--port", str(port), *more])


class OthersEngine:
    """An engine that somebody else runs."""

    def __init__(self, port: int, *more: str) -> None:
        self.port = port
        self._command = [sys.executable, str(SERVER), "--port", str(port), *more]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env={**os.environ, "PYTHONPATH": str(SERVICES)})
        wait_until(self._answers, "the engine answers", 20)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def load(self, name: str, path: Path) -> None:
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def unload(self, name: str) -> None:
        self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def metric(self, name: str) -> float:
        text = self._open("/metrics").decode()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def _answers(self) -> bool:
        try:
            self._open("/health")
        except OSError:
            return False
        return True

    def _post(self, path: str, body: dict[str, str]) -> None:
        headers = {"Authorization": f"Bearer {ENGINE_KEY}"}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        urllib.request.urlopen(request, timeout=10).close()

    def _open(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return bytes(answer.read())


StartDead = Callable[[str], str]


@pytest.fixture
def start_dead() -> Iterator[StartDead]:
    """Starts a host alone with a start command that fails; returns what it says."""
    site = Site(
        {"engine_hosts": {"vllm": {"engine": "vllm"}}, "vllm": {"launch_mode": "cli"}}, port=free_port(), hosts=()
    )

    def start(command: str) -> str:
        port = next(
            (word for word, flag in zip(command.split()[1:], command.split(), strict=False) if flag == "--port"), "1"
        )
        site.write_config(
            {"vllm_port": int(port), "vllm": {"start_cmd": command, "extra_env": {"PYTHONPATH": str(SERVICES)}}}
        )
        done = subprocess.run(
            [sys.executable, "-m", "vllm_proxy.engine_host", "--config", str(site.config_path), "--name", "vllm"],
            env={**os.environ, "PYTHONPATH": str(SERVICES)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode in (1, 2), done.stderr
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        return str(next(line["detail"] for line in lines if line["event"] in ("engine died", "cannot start")))

    yield start
    site.remove()


@pytest.fixture
def others() -> Iterator[OthersEngine]:
    engine = OthersEngine(free_port())
    yield engine
    engine.kill()


def engine_of(cluster: Cluster) -> PidRecord:
    record = pid_record.read(cluster.root / ".pids/vllm.pid")
    assert record is not None
    return record


async def models(cluster: Cluster) -> set[str]:
    answer = await cluster.client().request("GET", "/v1/models")
    return {row["id"] for row in answer.json()["data"]} if answer.status == 200 else set()


class TestCli:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, start_cluster: StartCluster) -> Cluster:
        return start_cluster(
            {
                **BASE_CONFIG,
                # No engine is back so soon: what it fails stays failed.
                "edge": {"retry_wait_s": 0.1},
                "engine_hosts": {"vllm": {"engine": "vllm"}},
                "vllm_port": free_port(),
                "vllm": {
                    "launch_mode": "cli",
                    "start_cmd": f"{sys.executable} {SERVER} --model sim --api-key {ENGINE_KEY} --disable-log-requests",
                    "extra_env": {"PYTHONPATH": str(SERVICES)},
                    "lora": {"allowed_roots": ["adapters"]},
                },
            },
            hosts=("vllm",),
        )

    async def test_answers_and_books(self, cluster: Cluster) -> None:
        alice = cluster.client()
        before = await cluster.settled_usage()
        whole = await alice.chat(max_tokens=7)
        assert whole.status == 200 and whole.json()["usage"]["completion_tokens"] == 7
        plain = await alice.stream(max_tokens=5)
        assert plain.done and not any("usage" in chunk for chunk in plain.chunks)
        asked = await alice.stream(max_tokens=5, stream_options={"include_usage": True})
        assert [chunk["usage"]["completion_tokens"] for chunk in asked.chunks if "usage" in chunk] == [5]
        used = await cluster.settled_usage() - before
        assert (used.requests, used.completion_tokens) == (3, 17)
        assert used.prompt_tokens == 3 * whole.json()["usage"]["prompt_tokens"]

    async def test_the_engines_own_error_passes(self, cluster: Cluster) -> None:
        answer = await cluster.client().request("POST", "/v1/chat/completions", {"model": "sim", "messages": []})
        assert answer.status == 400 and "messages" in answer.error["message"]
        unknown = await cluster.client(model="nobody").chat()
        assert (unknown.status, unknown.error["type"]) == (404, "NotFoundError")

    async def test_an_adapter_that_the_configuration_names_comes_and_goes_with_it(self, cluster: Cluster) -> None:
        folder = write_adapter(cluster.root / "preloaded/named")
        preload = [{"name": "named", "path": str(folder)}]

        def loaded() -> set[str]:
            (host,) = cluster.control.hosts().values()
            return {model.name for model in host.models if model.base}

        cluster.write_config({"vllm": {"lora": {"preload": preload}}})
        await eventually(lambda: loaded() == {"named"}, "the adapter loaded")
        assert (await cluster.client(model="named").chat()).status == 200
        cluster.write_config({"vllm": {"lora": {"preload": []}}})
        await eventually(lambda: loaded() == set(), "the adapter unloaded")

    async def test_a_killed_engine_is_told_in_time_and_comes_back_by_itself(self, cluster: Cluster) -> None:
        alice = cluster.client()
        before = await cluster.settled_usage()
        host, engine = cluster.host.pid, engine_of(cluster)
        async with live_streams(alice, 5, max_tokens=100_000) as streams:
            whole = asyncio.create_task(cluster.client(BOB).chat(max_tokens=100_000))
            await eventually(lambda: cluster.control.usage(BOB.user).running == 1, "the whole answer under way")
            for stream in streams:
                await stream.wait_tokens(10)
            os.kill(engine.pid, signal.SIGKILL)
            async with asyncio.timeout(TOLD_S):
                for stream in streams:
                    outcome = await stream.end()
                    assert outcome.complete and not outcome.done and outcome.error is not None
                    assert outcome.error["code"] in ("engine_failed", "engine_unavailable")
                assert (await whole).status in (502, 503)
            seen = sum(stream.tokens for stream in streams)
            used = await cluster.settled_usage() - before
            assert seen <= used.completion_tokens <= seen + IN_TRANSIT_TOKENS
            assert (await cluster.settled_usage(BOB.user)).running == 0

        def told() -> bool:
            return cluster.control.serving_hosts() == set()

        await eventually(told, "the host out of the table")
        await eventually(lambda: cluster.control.serving_hosts() == {"vllm"}, "the host serving again", 20)
        assert (await alice.stream(max_tokens=3)).done
        assert (cluster.host.pid, engine_of(cluster).is_alive) == (host, True)
        assert engine_of(cluster) != engine

    async def test_a_host_that_returns_adopts_its_engine(self, cluster: Cluster) -> None:
        engine = engine_of(cluster)
        cluster.host.kill()
        assert engine.is_alive
        cluster.host.start()
        await asyncio.to_thread(cluster.host.wait_healthy)
        assert engine_of(cluster) == engine and engine.is_alive
        adopted = [line for line in cluster.host.log_lines() if line["event"] == "engine adopted"]
        assert adopted[-1]["pid"] == engine.pid
        await eventually(lambda: cluster.control.serving_hosts() == {"vllm"}, "the host serving", 10)
        assert (await cluster.client().stream(max_tokens=3)).done

    async def test_another_command_replaces_the_engine_and_a_stop_ends_it(self, cluster: Cluster) -> None:
        engine = engine_of(cluster)
        cluster.host.kill()
        cluster.write_config({"vllm": {"extra_env": {"OTHER": "1"}}})
        cluster.host.start()
        await asyncio.to_thread(cluster.host.wait_healthy)
        assert not engine.is_alive and engine_of(cluster).is_alive
        engine = engine_of(cluster)
        assert cluster.host.stop() == 0
        assert engine.group() == [] and not (cluster.root / ".pids/vllm.pid").exists()
        cluster.host.start()
        await asyncio.to_thread(cluster.host.wait_healthy)

    async def test_secrets_stay_with_the_host(self, cluster: Cluster) -> None:
        environment = await asyncio.to_thread(Path(f"/proc/{engine_of(cluster).pid}/environ").read_bytes)
        assert b"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in environment
        assert b"VLLM_LORA_RESOLVER_CACHE_DIR=" in environment and b"INTERNAL_TOKEN" not in environment
        assert ENGINE_KEY not in cluster.host.log_path.read_text()


class TestStartsThatFail:
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--fail", '"ValueError: out of memory"'), "memory is too small"),
            (("--fail", '"api_server.py: error: unrecognized arguments: --frob"'), "a flag of the start command"),
            (("--fail", '"OSError: nope is not a valid model identifier"'), "no such model"),
        ],
    )
    def test_the_last_error_lines_are_quoted(self, start_dead: StartDead, more: tuple[str, ...], said: str) -> None:
        detail = start_dead(start_cmd(free_port(), *more))
        assert said in detail and more[1].strip('"') in detail and "exit status 1" in detail

    def test_a_program_that_is_not_there(self, start_dead: StartDead) -> None:
        assert "No such file" in start_dead("no-such-program --port 1")

    def test_killed_for_memory(self, start_dead: StartDead) -> None:
        assert "signal 9" in start_dead("bash -c 'kill -9 $$'")

    def test_a_port_that_is_taken(self, start_dead: StartDead, others: OthersEngine) -> None:
        others.start()
        assert f"port {others.port} is in use" in start_dead(start_cmd(others.port))


class TestAttached:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, start_cluster: StartCluster, engine: OthersEngine) -> Cluster:
        engine.start()
        return start_cluster(
            {
                **BASE_CONFIG,
                "edge": {"capacity_wait_s": 1, "retry_wait_s": 15},
                "engine_hosts": {
                    "vllm": {"engine": "vllm", "launch_mode": "attached", "url": f"http://127.0.0.1:{engine.port}"},
                    "second": {"engine": "vllm", "launch_mode": "cli", "port": free_port()},
                },
                "vllm": {
                    "start_cmd": f"{sys.executable} {SERVER} --model other",
                    "extra_env": {"PYTHONPATH": str(SERVICES), "VLLM_API_KEY": ENGINE_KEY},
                    "lora": {"allowed_roots": ["adapters"], "preload": []},
                },
            },
            hosts=("vllm", "second"),
        )

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[OthersEngine]:
        engine = OthersEngine(free_port(), "--api-key", ENGINE_KEY)
        yield engine
        engine.kill()

    async def test_two_hosts_of_one_kind_behind_one_edge(self, cluster: Cluster) -> None:
        assert await models(cluster) == {"sim", "other"}
        for model in ("sim", "other"):
            assert f"simulated by {model}" in (await cluster.client(model=model).stream(max_tokens=2)).text

    async def test_a_client_that_leaves_ends_its_request_in_the_engine(
        self, cluster: Cluster, engine: OthersEngine
    ) -> None:
        before = await cluster.settled_usage()
        stream = await LiveStream.start(cluster.client(), max_tokens=100_000)
        await stream.wait_tokens(10)
        assert engine.metric("vllm:num_requests_running") == 1
        await stream.leave()
        await eventually(lambda: engine.metric("vllm:num_requests_running") == 0, "the engine free", 2)
        used = await cluster.settled_usage() - before
        assert 10 <= used.completion_tokens < 100_000

    async def test_requests_that_meet_a_restart_of_the_engine_are_served_by_the_new_one(
        self, cluster: Cluster, engine: OthersEngine
    ) -> None:
        alice = cluster.client()
        asked = [asyncio.create_task(alice.chat(max_tokens=200)) for _ in range(10)]
        await eventually(lambda: engine.metric("vllm:num_requests_running") == 10, "the engine busy")
        engine.kill()
        await asyncio.to_thread(engine.start)
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [200] * 10, [answer.body for answer in answers]
        await eventually(lambda: cluster.control.serving_hosts() == {"vllm", "second"}, "the host serving again", 10)

    async def test_a_slow_client_holds_back_its_own_stream_only(self, cluster: Cluster, engine: OthersEngine) -> None:
        slow = await cluster.client().open_stream(max_tokens=100_000, receive_buffer_bytes=4096)
        try:
            for _ in range(3):
                assert (await cluster.client().stream(max_tokens=20)).done
        finally:
            slow.close()
        await eventually(lambda: engine.metric("vllm:num_requests_running") == 0, "the engine free", 5)

    async def test_what_is_loaded_behind_its_back_is_routed(self, cluster: Cluster, engine: OthersEngine) -> None:
        folder = write_adapter(cluster.root / "adapters/mine")
        engine.load("mine", folder)
        began = time.monotonic()

        async def listed() -> bool:
            return "mine" in await models(cluster)

        await eventually(listed, "the adapter listed", NOTICED_S)
        assert time.monotonic() - began < NOTICED_S
        assert "simulated by mine" in (await cluster.client(model="mine").stream(max_tokens=2)).text
        engine.unload("mine")

        async def gone() -> bool:
            return "mine" not in await models(cluster)

        await eventually(gone, "the adapter dropped", NOTICED_S)
        assert (await cluster.client(model="mine").chat()).status == 404

    async def test_it_goes_and_comes_back_and_its_adapters_are_loaded_again(
        self, cluster: Cluster, engine: OthersEngine
    ) -> None:
        folder = write_adapter(cluster.root / "adapters/kept")
        engine.load("kept", folder)

        async def listed() -> bool:
            return "kept" in await models(cluster)

        await eventually(listed, "the adapter listed", NOTICED_S)
        host = cluster.hosts["vllm"].pid
        engine.kill()
        await eventually(lambda: cluster.control.serving_hosts() == {"second"}, "out of the table", TOLD_S)
        answer = await cluster.client().chat()
        assert answer.status == 503
        engine.start()
        await eventually(listed, "engine and adapter back", 20)
        assert cluster.hosts["vllm"].pid == host
        assert (await cluster.client(model="kept").stream(max_tokens=2)).done

    async def test_an_adapter_loaded_through_the_gateway(self, cluster: Cluster) -> None:
        write_adapter(cluster.root / "adapters/ours")
        admin = cluster.client(ADMIN)
        body = {"lora_name": "ours", "lora_path": "adapters/ours", "base_model_name": "sim"}
        answer = await admin.request("POST", "/admin/load-lora-adapter", body)
        assert answer.status == 200, answer.body
        assert "simulated by ours" in (await cluster.client(model="ours").stream(max_tokens=2)).text
        # Other weights in the same folder: what the engine cached under that name and path must not be used.
        write_adapter(cluster.root / "adapters/ours", fill=1.0)
        answer = await admin.request("POST", "/admin/load-lora-adapter", {**body, "load_inplace": True})
        assert answer.status == 400 and "prefix cache" in answer.error["message"]
        answer = await admin.request("POST", "/admin/unload-lora-adapter", {"lora_name": "ours"})
        assert answer.status == 200, answer.body
        assert (await cluster.client(model="ours").chat()).status == 404
