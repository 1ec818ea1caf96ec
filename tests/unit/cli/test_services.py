"""The services of a configuration are those that the supervisor is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.supervisor_config import programs

from vllm_proxy.cli.services import Service, log_files, services_of
from vllm_proxy.common.settings import ConfigError, LoadedSettings, load_settings


def loaded(folder: Path, text: str) -> LoadedSettings:
    (folder / "config").mkdir()
    (folder / "config" / "vllm_start_cmd.txt").write_text("vllm serve m")
    (folder / "config" / "config.yaml").write_text(text)
    return load_settings(folder / "config" / "config.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fastapi_workers: 3\nfastapi_host: 127.0.0.1",
        "fastapi_host: '::'\nnginx: {enabled: true}",
        "engine_hosts: {a: {engine: sim}, b: {engine: vllm, port: 9}}\nlogs: {dir: elsewhere}",
    ],
)
def test_as_the_supervisor_runs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.chdir(tmp_path)
    settings = loaded(tmp_path, text)
    folder = settings.settings.logs.dir
    assert services_of(settings) == [
        Service(p.name, p.address, tuple(folder / log for log in (*p.log_names, *filter(None, [p.error_log]))))
        for p in programs(settings)
    ]


def test_logs_by_service_by_file_and_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = loaded(tmp_path, "fastapi_workers: 2")

    def names(name: str) -> list[str]:
        return [path.name for path in log_files(settings, name).values()]

    assert names("edge") == names("fastapi") == ["fastapi-0.log", "fastapi-1.log"]
    assert names("fastapi-1") == ["fastapi-1.log"]
    assert names("auth") == ["auth.log"]
    assert names("vllm") == ["vllm.log"]
    assert names("all") == ["auth.log", "router.log", "engine-vllm.log", "fastapi-0.log", "fastapi-1.log", "vllm.log"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "fastapi.log").touch()  # from when there was one worker
    (tmp_path / "logs" / "fastapi-access.log").touch()
    assert names("edge") == ["fastapi-0.log", "fastapi-1.log", "fastapi.log"]
    with pytest.raises(ConfigError, match="there is auth, edge"):
        names("nonsense")
