from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.wait import wait_until

from vllm_proxy.common.settings import Lora, RuntimeResolver, Vllm
from vllm_proxy.engine_host.engines import vllm_process
from vllm_proxy.engine_host.engines.vllm_process import EngineOutput, set_environment
from vllm_proxy.engine_host.engines.vllm_worker import OWNER_VARIABLE


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {"VLLM_PLUGINS": "mine", "VLLM_NO_USAGE_STATS": "0", "PROMETHEUS_MULTIPROC_DIR": "/x"}
    monkeypatch.setattr(os, "environ", environment)
    resolver = RuntimeResolver(cache_dir=tmp_path / "cache")
    set_environment(Vllm(extra_env={"A": "1"}, lora=Lora(runtime_resolver=resolver)))
    assert environment["A"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "0"
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment
    assert environment["VLLM_PLUGINS"] == "mine,lora_filesystem_resolver,vllm_proxy"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert Path(environment["VLLM_LORA_RESOLVER_CACHE_DIR"]).is_dir()
    assert environment[OWNER_VARIABLE].startswith(f"{os.getpid()}:")


def test_leftovers_of_a_dead_host_are_killed_and_others_are_not() -> None:
    def sleeper(mark: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={OWNER_VARIABLE: mark})

    # The process id is alive, but it is another process than the one that wrote the mark.
    orphan, ours = sleeper(f"{os.getpid()}:1"), sleeper(vllm_process.own_mark())
    try:
        marks = {orphan.pid, ours.pid}
        wait_until(lambda: marks <= {pid for pid, _ in vllm_process._marked()}, "both marked")
        assert orphan.pid in vllm_process.reap_leftovers()
        assert orphan.wait(5) == -9
        assert ours.poll() is None
        assert ours.pid in vllm_process.reap_own()
    finally:
        for process in (orphan, ours):
            process.kill()
            process.communicate()


LOG = """\
(EngineCore pid=7) ERROR 11-22 17:35:12 [core.py:99] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-22 17:35:12 [core.py:99] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-22 17:35:12 [core.py:99] ValueError: No available memory for the cache blocks.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_cause_of_a_death_is_the_engines_own_last_error(tmp_path: Path) -> None:
    path = tmp_path / "logs/vllm.log"
    path.parent.mkdir()
    path.write_text(LOG)
    output = EngineOutput(path, max_bytes=1000, backups=2)
    assert output.cause() == "ValueError: No available memory for the cache blocks."
    assert output.cause(since_bytes=len(LOG)) == ""
    assert EngineOutput(tmp_path / "none", 1, 1).cause() == ""


def test_rotation_keeps_the_file_that_others_append_to(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    output = EngineOutput(path, max_bytes=10, backups=2)
    output.rotate()
    with path.open("a") as appending:
        for number in range(4):
            appending.write(f"line number {number}\n")
            appending.flush()
            output.rotate()
            assert output.size_bytes() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vllm.log", "vllm.log.1", "vllm.log.2"]
    assert (tmp_path / "vllm.log.1").read_text() == "line number 3\n"
    assert (tmp_path / "vllm.log.2").read_text() == "line number 2\n"
