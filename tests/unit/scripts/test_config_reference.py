from __future__ import annotations

from scripts.config_reference import PAGE, REFRESH, comments, render


def test_the_page_is_what_the_settings_say() -> None:
    assert PAGE.read_text() == render(), REFRESH


def test_every_setting_says_what_it_is() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if not row.split("|")[-2].strip()] == []


def test_a_comment_speaks_for_a_setting_that_says_nothing() -> None:
    text = "a: 1   # one\nb:      # section\n  c: x  # a # in it\n  d: y\n"
    assert comments(text) == {"a": "one", "b": "section", "b.c": "a # in it"}


def test_bounds_choices_and_sections_are_shown() -> None:
    lines = render().splitlines()
    assert any(line.startswith("| `fastapi_port` | `8001` | integer ≥ 0, ≤ 65535 | edge, nginx | ") for line in lines)
    assert any(line.startswith("| `qps` | `null` | number > 0 or `null` | at once | ") for line in lines)
    assert any(
        line.startswith("| `log_level` | `INFO` | `DEBUG`, `INFO`, `WARNING`, `ERROR` | at once | ") for line in lines
    )
    assert any(line.startswith("| `engine` | *needed* | ") for line in lines)
    for heading in ("vllm.lora.runtime_resolver", "vllm.lora.preload[]", "engine_hosts.NAME"):
        assert f"## `{heading}`" in lines
