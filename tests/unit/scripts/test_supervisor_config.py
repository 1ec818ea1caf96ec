"""The generated configuration, read back by supervisord's own parser."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from scripts.supervisor_config import edge_url, engine_environments, environment_python, programs, render
from supervisor.options import ServerOptions

from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings, load_settings
from vllm_proxy.edge.config import EdgeConfig


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "a project"
    (root / "config").mkdir(parents=True)
    for folder in ("logs", ".pids", ".run"):
        (root / folder).mkdir()
    monkeypatch.chdir(root)
    return root


def _load(root: Path, text: str) -> LoadedSettings:
    path = root / "config" / "config.yaml"
    path.write_text(text)
    return load_settings(path)


def _parsed(loaded: LoadedSettings, *overrides: str) -> dict[str, Any]:
    """Group name -> group configuration."""
    path = loaded.root / ".run" / "supervisord.conf"
    path.write_text(render(loaded, programs(loaded, overrides)))
    options = ServerOptions()
    options.realize(["-c", str(path)])
    return {group.name: group for group in options.process_group_configs}


def test_services_start_in_the_order_of_their_need(project: Path):
    loaded = _load(project, "engine_hosts: {a: {engine: sim}, b: {engine: sim}}")
    groups = _parsed(loaded)
    in_order = sorted(groups.values(), key=lambda group: (group.priority, group.name))
    assert [group.name for group in in_order] == ["auth", "router", "engine-a", "engine-b", "edge"]


def test_commands_logs_and_pid_files_survive_spaces_in_the_path(project: Path):
    loaded = _load(project, "engine_hosts: {sim: {engine: sim}}")
    (auth,) = _parsed(loaded)["auth"].process_configs
    words = shlex.split(auth.command)
    assert words[2] == str(project / ".pids" / "auth.pid")
    assert words[3:] == [str(environment_python("gateway")), "-m", "vllm_proxy.auth", "--config", str(loaded.path)]
    assert auth.stdout_logfile == str(project / "logs" / "auth.log")
    assert auth.directory == str(project)
    assert auth.redirect_stderr


def test_logs_are_bounded(project: Path):
    loaded = _load(project, "{engine_hosts: {sim: {engine: sim}}, logs: {max_bytes: 1000, backups: 3}}")
    for group in _parsed(loaded).values():
        for process in group.process_configs:
            assert (process.stdout_logfile_maxbytes, process.stdout_logfile_backups) == (1000, 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_edge_finds_the_logs_of_all_its_workers(project: Path, workers: int):
    loaded = _load(project, f"{{engine_hosts: {{sim: {{engine: sim}}}}, fastapi_workers: {workers}}}")
    (edge,) = (program for program in programs(loaded) if program.name == "edge")
    for name in edge.log_names:
        (project / "logs" / name).touch()
    config = EdgeConfig.from_settings(loaded)
    assert [file.name for file in LogFolder(config.log_dir, config.log_stems).files()] == edge.log_names


def test_edge_workers_inherit_one_listener_and_log_apart(project: Path):
    loaded = _load(project, "{engine_hosts: {sim: {engine: sim}}, fastapi_workers: 2, fastapi_port: 18099}")
    edge = _parsed(loaded)["edge"]
    assert edge.socket_config.addr() == ("0.0.0.0", 18099)
    logs = [Path(process.stdout_logfile).name for process in edge.process_configs]
    assert logs == ["fastapi-0.log", "fastapi-1.log"]
    for number, process in enumerate(edge.process_configs):
        number = process.name.rpartition("-")[2]
        assert process.command.endswith(f'"--listen-fd" "0" "--ready-file" "{project}/.run/edge-{number}.ready"')
        assert f"edge-{number}.pid" in process.command
        assert process.environment["PROMETHEUS_MULTIPROC_DIR"] == str(project / ".run" / "metrics")


def test_one_edge_worker_logs_to_the_guides_file(project: Path):
    (process,) = _parsed(_load(project, "engine_hosts: {sim: {engine: sim}}"))["edge"].process_configs
    assert Path(process.stdout_logfile).name == "fastapi.log"


def test_only_the_edge_shares_metric_files(project: Path):
    groups = _parsed(_load(project, "engine_hosts: {sim: {engine: sim}}"))
    with_files = [
        group.name
        for group in groups.values()
        if any("PROMETHEUS_MULTIPROC_DIR" in (process.environment or {}) for process in group.process_configs)
    ]
    assert with_files == ["edge"]


def test_a_service_has_its_drain_to_stop_and_its_engine_is_not_told(project: Path):
    loaded = _load(project, "{engine_hosts: {sim: {engine: sim}}, engine_host: {drain_timeout_s: 77}}")
    (host,) = _parsed(loaded)["engine-sim"].process_configs
    assert host.stopwaitsecs > 77
    assert not host.stopasgroup
    assert host.killasgroup


def test_an_engine_host_runs_in_its_engines_environment(project: Path):
    (project / "config" / "vllm_start_cmd.txt").write_text("vllm serve some/model")
    loaded = _load(project, "")
    program = next(p for p in programs(loaded) if p.name == "engine-vllm")
    assert program.command[0] == str(environment_python("vllm"))
    (process,) = _parsed(loaded)["engine-vllm"].process_configs
    assert process.environment["PATH"].startswith(f"{environment_python('vllm').parent}:")


def test_an_attached_engine_needs_no_environment_of_its_own(project: Path):
    loaded = _load(project, "")
    settings = Settings.model_validate({"vllm": {"launch_mode": "attached"}})
    loaded = dataclasses.replace(loaded, settings=settings)
    program = next(p for p in programs(loaded) if p.name == "engine-vllm")
    assert program.command[0] == str(environment_python("gateway"))


def test_overrides_reach_every_service(project: Path):
    loaded = _load(project, "engine_hosts: {sim: {engine: sim}}")
    for program in programs(loaded, ["vllm.start_cmd=null"]):
        where = program.command.index("--set")
        assert program.command[where + 1] == "vllm.start_cmd=null"


def test_an_ipv6_edge_opens_its_own_listener(project: Path):
    loaded = _load(project, "{engine_hosts: {sim: {engine: sim}}, fastapi_host: '::'}")
    (process,) = _parsed(loaded)["edge"].process_configs
    assert "--listen-fd" not in process.command
    with pytest.raises(ConfigError, match="fastapi_workers"):
        programs(_load(project, "{engine_hosts: {sim: {engine: sim}}, fastapi_host: '::', fastapi_workers: 2}"))


@pytest.mark.parametrize("name", ["with%percent", 'with"quote', "with ;semicolon", "with #hash"])
def test_a_path_that_supervisord_would_misread_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    root = tmp_path / name
    (root / "config").mkdir(parents=True)
    monkeypatch.chdir(root)
    loaded = _load(root, "engine_hosts: {sim: {engine: sim}}")
    with pytest.raises(ConfigError):
        render(loaded, programs(loaded))


def test_port_zero_is_refused(project: Path):
    with pytest.raises(ConfigError, match="fastapi_port"):
        programs(_load(project, "{engine_hosts: {sim: {engine: sim}}, fastapi_port: 0}"))


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8001"), ("::", "http://[::1]:8001"), ("gpu-1", "http://gpu-1:8001")],
)
def test_the_url_is_one_that_a_client_on_this_machine_can_use(host: str, url: str):
    assert edge_url(Settings(fastapi_host=host)) == url


@pytest.mark.parametrize(
    ("command", "programs_of"),
    [
        ("python -m vllm.entrypoints.openai.api_server --model m", "vllm"),
        ("A=1 vllm serve m", "vllm"),
        ("conda run -n mine python -m vllm.entrypoints.openai.api_server", None),
        ("/opt/mine/bin/vllm serve m", None),
        ("bash -lc 'vllm serve m'", None),
    ],
)
def test_a_start_command_that_is_run_needs_its_engines_environment_unless_it_brings_its_own(
    command: str, programs_of: str | None
):
    settings = Settings.model_validate({"vllm": {"launch_mode": "cli", "start_cmd": command}})
    assert engine_environments(settings, "vllm", settings.hosts()["vllm"]) == ("gateway", programs_of)
