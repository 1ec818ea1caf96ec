from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.unit.common.log_files import folder_of_logs

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.maintenance import MaintenanceServicer
from vllm_proxy.common.metrics import process_registry
from vllm_proxy.common.reload import Commit, Outcome, Reloader
from vllm_proxy.common.settings import LoadedSettings, load_settings


def nothing_to_do(loaded: LoadedSettings) -> Commit:
    async def commit(outcome: Outcome) -> None:
        outcome.problems.append("entry 3: no key")

    return commit


class TestServicer:
    @pytest.fixture
    def servicer(self, tmp_path: Path) -> MaintenanceServicer:
        folder = folder_of_logs(tmp_path / "logs")
        config = tmp_path / "config" / "config.yaml"
        config.parent.mkdir()
        config.write_text(
            "fastapi_port: 8123\n"
            "vllm:\n"
            "  start_cmd: VLLM_API_KEY=a-secret vllm serve m --api-key sk-secret-1 sk-secret-2 --port 1 "
            "--hf-token=hf-secret --chat-template http://user:secret@host/x\n"
            "  extra_env: {HF_TOKEN: hf-secret, VLLM_API_KEY: secret, TOKEN: secret, VLLM_USE_V1: 1}\n"
        )
        reloader = Reloader("auth", load_settings(config), nothing_to_do)
        return MaintenanceServicer(reloader, LogFolder(folder, ["auth"]), process_registry())

    async def test_the_metrics_are_what_prometheus_scrapes(self, servicer: MaintenanceServicer) -> None:
        text = (await servicer.GetMetrics(pb.GetMetricsRequest(), None)).text.decode()
        (line,) = [line for line in text.splitlines() if line.startswith("process_start_time_seconds ")]
        assert float(line.split()[1]) <= time.time() + 1

    async def test_log_stats_sum_up(self, servicer: MaintenanceServicer) -> None:
        stats = await servicer.GetLogStats(pb.GetLogStatsRequest(), None)
        assert (len(stats.files), stats.total_bytes) == (3, 30)

    async def test_clean_logs_says_what_it_freed(self, servicer: MaintenanceServicer) -> None:
        cleaned = await servicer.CleanLogs(pb.CleanLogsRequest(older_than_days=7), None)
        assert ([file.name for file in cleaned.removed], cleaned.freed_bytes) == (["auth.log.2.gz"], 10)

    async def test_the_effective_configuration_has_defaults_and_no_secrets(self, servicer: MaintenanceServicer) -> None:
        shown = await servicer.GetEffectiveConfig(pb.GetEffectiveConfigRequest(), None)
        assert "secret" not in shown.yaml
        config = yaml.safe_load(shown.yaml)
        assert (config["fastapi_port"], config["vllm_port"]) == (8123, 8002)
        assert config["vllm"]["extra_env"]["VLLM_USE_V1"] == "1"
        assert "vllm serve m --api-key *** --port 1" in config["vllm"]["start_cmd"]
        assert config["auth"]["default_response_tokens"] == 1024
        assert shown.path.endswith("config/config.yaml")

    async def test_a_reload_says_what_holds_and_what_has_to_wait(
        self, servicer: MaintenanceServicer, tmp_path: Path
    ) -> None:
        (tmp_path / "config" / "config.yaml").write_text("rate_limit: {qps: 3}\nauth: {lease_ttl_s: 5}\n")
        answer = await servicer.Reload(pb.ReloadRequest(), None)
        assert (answer.service, list(answer.applied)) == ("auth", ["rate_limit.qps"])
        assert [(row.setting, row.service) for row in answer.needs_restart] == [("auth.lease_ttl_s", "auth")]
        assert list(answer.problems) == ["entry 3: no key"]
        in_force = yaml.safe_load((await servicer.GetEffectiveConfig(pb.GetEffectiveConfigRequest(), None)).yaml)
        assert (in_force["rate_limit"]["qps"], in_force["auth"]["lease_ttl_s"]) == (3, 30)

    async def test_a_reload_of_a_bad_file_says_why(self, servicer: MaintenanceServicer, tmp_path: Path) -> None:
        (tmp_path / "config" / "config.yaml").write_text("rate_limt: {qps: 3}\n")
        with pytest.raises(InvalidRequest, match="rate_limt: unknown key"):
            await servicer.Reload(pb.ReloadRequest(), None)

    @pytest.mark.usefixtures("own_level")
    async def test_the_log_level_changes_and_changes_back(self, servicer: MaintenanceServicer) -> None:
        logging.getLogger().setLevel("INFO")
        changed = await servicer.SetLogLevel(pb.SetLogLevelRequest(level=pb.LOG_LEVEL_DEBUG), None)
        assert (changed.level, changed.previous) == (pb.LOG_LEVEL_DEBUG, pb.LOG_LEVEL_INFO)
        assert logging.getLogger("vllm_proxy.auth").isEnabledFor(logging.DEBUG)
        assert (await servicer.GetInfo(pb.GetInfoRequest(), None)).log_level == pb.LOG_LEVEL_DEBUG
        restored = await servicer.SetLogLevel(pb.SetLogLevelRequest(), None)
        assert (restored.level, restored.previous) == (pb.LOG_LEVEL_INFO, pb.LOG_LEVEL_DEBUG)
        with pytest.raises(InvalidRequest):
            await servicer.SetLogLevel(pb.SetLogLevelRequest(level=99), None)  # type: ignore[arg-type]

    async def test_it_says_who_it_is_and_what_time_it_is(self, servicer: MaintenanceServicer) -> None:
        info = await servicer.GetInfo(pb.GetInfoRequest(), None)
        assert (info.service, info.pid) == ("auth", os.getpid())
        assert info.started_at_ms <= info.now_ms <= time.time() * 1000 + 1


@pytest.fixture
def own_level() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
