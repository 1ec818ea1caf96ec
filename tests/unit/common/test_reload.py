from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vllm_proxy.common.reload import Commit, Outcome, Reloader
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings, load_settings

DEADLINE_S = 5


class Service(logging.Handler):
    """A service that puts in force what it is given, and says in its log what it was not."""

    def __init__(self, folder: Path, name: str = "auth", *overrides: str) -> None:
        super().__init__(logging.ERROR)
        self.path = folder / "config.yaml"
        self.keys = folder / "keys.json"
        self.keys.write_text("one")
        if not self.path.exists():
            self.path.write_text("rate_limit: {qps: 1}\n")
        self.hangup = asyncio.Event()
        self._applied: asyncio.Queue[Settings] = asyncio.Queue()
        self.refusals: list[str] = []
        self._refused = asyncio.Semaphore(0)
        loaded = load_settings(self.path, overrides)
        self.reloader = Reloader(name, loaded, self._prepare, [self.keys], interval_s=0.001)

    def emit(self, record: logging.LogRecord) -> None:
        self.refusals.append(record.__dict__["detail"])
        self._refused.release()

    def _prepare(self, loaded: LoadedSettings) -> Commit:
        if "bad" in self.keys.read_text():
            raise ConfigError("keys.json: bad")

        async def commit(outcome: Outcome) -> None:
            self._applied.put_nowait(loaded.settings)

        return commit

    async def refusal(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._refused.acquire()

    async def next(self) -> Settings:
        async with asyncio.timeout(DEADLINE_S):
            return await self._applied.get()

    @property
    def nothing_more(self) -> bool:
        return self._applied.empty()

    async def reload(self, text: str) -> Outcome:
        self.path.write_text(text)
        return await self.reloader.reload("test")


@pytest.fixture
async def watching(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path)
    log = logging.getLogger("vllm_proxy.common.reload")
    log.addHandler(service)
    task = asyncio.create_task(service.reloader.run(service.hangup))
    yield service
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    log.removeHandler(service)


class TestWatch:
    async def test_a_change_is_put_in_force(self, watching: Service) -> None:
        watching.path.write_text("rate_limit: {qps: 22}\n")
        assert (await watching.next()).rate_limit.qps == 22

    async def test_a_replaced_file_is_a_change(self, watching: Service) -> None:
        other = watching.path.with_suffix(".new")
        other.write_text("rate_limit: {qps: 3}\n")
        other.replace(watching.path)
        assert (await watching.next()).rate_limit.qps == 3

    async def test_the_other_files_are_followed_too(self, watching: Service) -> None:
        watching.keys.write_text("another")
        assert (await watching.next()).rate_limit.qps == 1

    async def test_a_bad_version_changes_nothing_and_is_said_once(self, watching: Service) -> None:
        watching.path.write_text("rate_limit: {qsp: 22}\n")
        await watching.refusal()
        watching.path.write_text("rate_limit: {qps: 333}\n")
        assert (await watching.next()).rate_limit.qps == 333
        assert watching.nothing_more
        assert ["rate_limit.qsp: unknown key" in detail for detail in watching.refusals] == [True]

    async def test_a_file_that_vanishes_and_returns_is_followed(self, watching: Service) -> None:
        watching.path.unlink()
        await watching.refusal()
        watching.path.write_text("rate_limit: {qps: 4}\n")
        assert (await watching.next()).rate_limit.qps == 4

    async def test_a_hangup_reloads_what_did_not_change(self, watching: Service) -> None:
        watching.hangup.set()
        assert (await watching.next()).rate_limit.qps == 1
        assert not watching.hangup.is_set()


class TestReload:
    async def test_what_waits_for_a_restart_is_said_until_it_is_taken_back(self, tmp_path: Path) -> None:
        service = Service(tmp_path)
        first = await service.reload("rate_limit: {qps: 2}\nauth: {lease_ttl_s: 5}\ngrpc: {keepalive_s: 9}\n")
        waiting = [("auth.lease_ttl_s", "auth"), ("grpc.keepalive_s", "auth")]
        assert (first.applied, first.needs_restart) == (["rate_limit.qps"], waiting)
        again = await service.reload("rate_limit: {qps: 2}\nauth: {lease_ttl_s: 5}\ngrpc: {keepalive_s: 9}\n")
        assert (again.applied, again.needs_restart) == ([], waiting)
        back = await service.reload("rate_limit: {qps: 2}\n")
        assert (back.applied, back.needs_restart) == ([], [])
        assert service.reloader.settings["auth"]["lease_ttl_s"] == 30

    async def test_others_settings_are_others_to_speak_of(self, tmp_path: Path) -> None:
        outcome = await Service(tmp_path, "router").reload("rate_limit: {qps: 2}\nauth: {lease_ttl_s: 5}\n")
        assert (outcome.applied, outcome.needs_restart) == ([], [])

    async def test_entries_come_and_go(self, tmp_path: Path) -> None:
        service = Service(tmp_path, "edge")
        assert (await service.reload("model_aliases: {gpt-3.5: sim}\n")).applied == ["model_aliases.gpt-3.5"]
        assert service.reloader.settings["model_aliases"] == {"gpt-3.5": "sim"}
        assert (await service.reload("model_aliases: {}\n")).applied == ["model_aliases.gpt-3.5"]
        assert service.reloader.settings["model_aliases"] == {}

    async def test_an_unusable_file_of_either_kind_changes_nothing(self, tmp_path: Path) -> None:
        service = Service(tmp_path)
        service.keys.write_text("bad")
        with pytest.raises(ConfigError, match="bad"):
            await service.reload("rate_limit: {qps: 2}\nlog_level: DEBUG\n")
        assert service.nothing_more and service.reloader.settings["rate_limit"]["qps"] == 1
        service.keys.write_text("good")
        with pytest.raises(ConfigError, match="not valid YAML"):
            await service.reload("rate_limit: {\n")
        assert service.nothing_more

    async def test_what_a_start_overrode_stays_so(self, tmp_path: Path) -> None:
        service = Service(tmp_path, "auth", "auth.lease_ttl_s=7")
        assert (await service.reload("auth: {lease_ttl_s: 5}\n")).needs_restart == []

    async def test_a_caller_who_leaves_does_not_stop_it(self, tmp_path: Path) -> None:
        service = Service(tmp_path)
        service.path.write_text("rate_limit: {qps: 2}\n")
        call = asyncio.create_task(service.reloader.reload("test"))
        await asyncio.sleep(0)
        call.cancel()
        assert (await service.next()).rate_limit.qps == 2


class TestHosts:
    ONE = "engine_hosts: {a: {engine: sim}}\n"

    async def test_the_router_speaks_for_a_host_that_is_new(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(self.ONE)
        outcome = await Service(tmp_path, "router").reload("engine_hosts: {a: {engine: sim}, b: {engine: sim}}\n")
        assert {service for _, service in outcome.needs_restart} == {"engine-b"}

    async def test_a_host_speaks_for_itself_and_its_engine(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(self.ONE)
        changed = "engine_hosts: {a: {engine: sim, metrics_port: 9}}\nsim: {step_ms: 1}\nvllm: {url: null}\n"
        outcome = await Service(tmp_path, "engine-a").reload(changed + "vllm_port: 1\n")
        waiting = [("sim.step_ms", "engine-a"), ("engine_hosts.a.metrics_port", "engine-a")]
        assert outcome.needs_restart == waiting

    async def test_a_changed_start_command_is_a_change(self, tmp_path: Path) -> None:
        command = tmp_path / "config" / "vllm_start_cmd.txt"
        command.parent.mkdir()
        command.write_text("vllm serve one\n")
        service = Service(tmp_path, "engine-vllm")
        command.write_text("# the same\nvllm serve one\n")
        assert (await service.reload("")).needs_restart == []
        command.write_text("vllm serve two\n")
        assert (await service.reload("")).needs_restart == [("vllm.start_cmd_file", "engine-vllm")]


@pytest.fixture
def root_level() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level = root.level
    root.setLevel("INFO")
    yield root
    root.setLevel(level)


class TestLogLevel:
    async def test_each_service_has_its_own(self, tmp_path: Path, root_level: logging.Logger) -> None:
        service = Service(tmp_path)
        await service.reload("log_levels: {edge: debug}\n")
        assert root_level.level == logging.INFO
        outcome = await service.reload("log_level: WARNING\nlog_levels: {auth: debug, edge: error}\n")
        assert root_level.level == logging.DEBUG
        assert outcome.applied == ["log_level", "log_levels.auth"]

    async def test_one_that_was_asked_for_stays_until_the_file_says_another(
        self, tmp_path: Path, root_level: logging.Logger
    ) -> None:
        service = Service(tmp_path)
        assert service.reloader.set_log_level("DEBUG") == "INFO"
        await service.reload("rate_limit: {qps: 2}\n")
        assert root_level.level == logging.DEBUG
        await service.reload("log_level: ERROR\n")
        assert root_level.level == logging.ERROR
