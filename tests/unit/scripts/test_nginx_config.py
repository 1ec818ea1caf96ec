"""The shipped nginx files are what the defaults of config.yaml make of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripts import external_tools, nginx_config
from scripts.control import Services
from scripts.nginx_config import MAIN, PLAIN, SHARED, SHIPPED, TLS
from scripts.supervisor_config import programs

from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings, load_settings


def loaded(root: Path, **settings: object) -> LoadedSettings:
    return LoadedSettings(Settings.model_validate(settings), root / "config" / "config.yaml", root)


@pytest.fixture(autouse=True)
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def shipped(name: str) -> str:
    return (SHIPPED / name).read_text()


def test_the_shipped_files_are_in_step_with_the_defaults(tmp_path: Path) -> None:
    made = nginx_config.files(loaded(tmp_path), "127.0.0.1:8001")
    assert made == {name: shipped(name) for name in (MAIN, PLAIN, SHARED)}


def test_the_tls_file_differs_in_its_listener_only(tmp_path: Path) -> None:
    nginx = {
        "port": 8443,
        "tls_certificate": "/etc/ssl/certs/vllm-proxy.pem",
        "tls_key": "/etc/ssl/private/vllm-proxy.key",
    }
    made = nginx_config.files(loaded(tmp_path, nginx=nginx), "127.0.0.1:8001")
    assert made[PLAIN].replace('"', "") == shipped(TLS)
    assert made[SHARED] == shipped(SHARED)


def test_ports_sizes_and_times_come_from_the_configuration(tmp_path: Path) -> None:
    edge = {
        "max_body_bytes": 1000,
        "max_header_bytes": 8192,
        "request_timeout_s": 9.5,
        "body_timeout_s": 7,
        "client_stall_timeout_s": 8,
        "keep_alive_timeout_s": 10,
    }
    made = nginx_config.files(loaded(tmp_path, edge=edge, nginx={"host": "::1", "port": 9}), "127.0.0.1:7")
    assert "    server 127.0.0.1:7;" in made[PLAIN]
    assert "    listen [::1]:9;" in made[PLAIN]
    assert "    keepalive_timeout 8s;" in made[PLAIN]
    for line in (
        "client_max_body_size 1000;",
        "large_client_header_buffers 4 2k;",
        "client_header_timeout 7s;",
        "client_body_timeout 7s;",
        "proxy_send_timeout 7s;",
        "send_timeout 8s;",
        "keepalive_timeout 10s;",
        "proxy_read_timeout 40s;",
    ):
        assert f"\n{line}" in made[SHARED]
    assert "worker_shutdown_timeout 40s;" in made[MAIN]


def test_files_of_the_installation_itself_come_first(tmp_path: Path) -> None:
    own = tmp_path / "config" / "nginx"
    (own / "snippets").mkdir(parents=True)
    for name in (MAIN, PLAIN):
        (own / name).write_text(shipped(name))
    (own / SHARED).write_text("gzip on;\n")
    assert nginx_config.files(loaded(tmp_path), "127.0.0.1:8001")[SHARED] == "gzip on;\n"
    (own / SHARED).unlink()
    with pytest.raises(ConfigError, match=r"snippets/vllm-proxy\.conf: cannot be read"):
        nginx_config.files(loaded(tmp_path), "127.0.0.1:8001")


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("nginx: {tls_certificate: a.pem}")
    with pytest.raises(ConfigError, match=r"nginx\.tls_certificate, nginx\.tls_key: both or none"):
        load_settings(path)


def test_where_there_is_no_nginx_a_start_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_tools, "find", lambda name: None)
    services = Services(loaded(tmp_path, nginx={"enabled": True}, engine_hosts={"sim": {"engine": "sim"}}))
    monkeypatch.setattr(services, "_supervisor", None)
    with pytest.raises(ConfigError, match=r"nginx is not installed: .*scripts\.external_tools nginx"):
        services.start(["nginx"], follow=False, wait=False, timeout_s=None)


def test_nginx_is_a_service_once_it_is_wanted_or_was_started(tmp_path: Path) -> None:
    def names(**nginx: object) -> list[str]:
        return [program.name for program in programs(loaded(tmp_path, nginx=nginx))]

    assert "nginx" not in names()
    assert names(enabled=True) == ["auth", "router", "engine-vllm", "nginx", "edge"]
    (tmp_path / ".pids").mkdir()
    (tmp_path / ".pids" / "nginx.pid").touch()
    assert "nginx" in names()
    assert "nginx" not in [program.name for program in Services(loaded(tmp_path)).named(())]
