from __future__ import annotations

from pathlib import Path

from vllm_proxy.engine_host.engines.engine_output import EngineOutput

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


def test_a_log_that_something_else_rotates_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text("x" * 100)
    EngineOutput(path, max_bytes=0, backups=2).rotate()
    assert [p.name for p in tmp_path.iterdir()] == ["vllm.log"]
