from __future__ import annotations

from pathlib import Path

import pytest

from vllm_proxy.common.lifecycle import argument_parser, load_or_exit
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings, find_root, load_settings

#: The example that the users' guide prints, in its own words.
GUIDE_EXAMPLE = """
vllm_host: localhost
vllm_port: 8002
sglang_host: localhost
sglang_port: 8003
fastapi_host: 0.0.0.0
fastapi_port: 8001
api_keys_file: config/api_keys.json
rate_limit:
  qps: null                  # null: unlimited
  concurrent: null
  tokens_per_minute: null
log_level: INFO
model_backend_mapping: {}
vllm:
  auto_start: false
  launch_mode: python_api
  start_cmd_file: config/vllm_start_cmd.txt
  start_cmd: null
  log_file: logs/vllm.log
  pid_file: .pids/vllm.pid
  extra_env: {}
  lora:
    enabled: true
    max_lora_rank: 64
    max_loras: 4
    max_cpu_loras: 2
    preload: []
    default_mm_loras: {}
    limit_mm_per_prompt: {}
    runtime_resolver:
      allow_runtime_updates: true
      plugins:
        - lora_filesystem_resolver
      cache_dir: ./lora_cache
sglang:
  auto_start: false
  launch_mode: python_api
  start_cmd_file: config/sglang_start_cmd.txt
  start_cmd: null
  log_file: logs/sglang.log
  pid_file: .pids/sglang.pid
  extra_env: {}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_config(text: str) -> Path:
        path = tmp_path / "config" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_config


@pytest.fixture
def load(write):
    def load_text(text: str) -> LoadedSettings:
        return load_settings(write(text))

    return load_text


def faults(load, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value).splitlines()


def test_an_empty_file_means_all_defaults(load) -> None:
    assert load("").settings == Settings()
    assert load("# nothing\n").warnings == ()


def test_the_guides_example_differs_from_the_defaults_in_nothing(load) -> None:
    loaded = load(GUIDE_EXAMPLE)
    assert loaded.settings == Settings()
    assert loaded.warnings == ("vllm.lora.max_cpu_loras: 2 is below max_loras and was raised to 4",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frobnicate: 1", "frobnicate: unknown key"),
        ("fastapi_prot: 1", "fastapi_prot: unknown key; did you mean fastapi_port?"),
        ("rate_limit: {qsp: 1}", "rate_limit.qsp: unknown key; did you mean qps?"),
        (
            "vllm: {lora: {runtime_resolver: {cachedir: x}}}",
            "vllm.lora.runtime_resolver.cachedir: unknown key; did you mean cache_dir?",
        ),
        (
            "vllm: {lora: {preload: [{name: a, pth: b, path: c}]}}",
            "vllm.lora.preload.0.pth: unknown key; did you mean path?",
        ),
        ("engine_hosts: {a: {engine: sim, adress: x}}", "engine_hosts.a.adress: unknown key; did you mean address?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(load, text: str, said: str) -> None:
    (line,) = faults(load, text)
    assert line.endswith(f"config.yaml: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fastapi_port:", "fastapi_port: is empty: give a number, or leave the line out"),
        ("edge: {drain_timeout_s: }", "edge.drain_timeout_s: is empty: give a number, or leave the line out"),
        ("fastapi_host:", "fastapi_host: is empty: give a text, or leave the line out"),
        ("run_dir:", "run_dir: is empty: give a path, or leave the line out"),
        ("vllm: {lora: {enabled: }}", "vllm.lora.enabled: is empty: give true or false, or leave the line out"),
        ("log_level:", "log_level: is empty: give 'DEBUG', 'INFO', 'WARNING' or 'ERROR', or leave the line out"),
        ("vllm: {lora: }", "vllm.lora: is empty: give a value, or leave the line out"),
    ],
)
def test_an_empty_value_is_told_what_it_should_be(load, text: str, said: str) -> None:
    (line,) = faults(load, text)
    assert line.endswith(f"config.yaml: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("auth: {address: nonsense}", "auth.address: must be unix:PATH or host:port, not 'nonsense'"),
        ("router: {address: 'unix:'}", "router.address: must be unix:PATH or host:port, not 'unix:'"),
        ("router: {address: 'localhost:70000'}", "router.address: must be unix:PATH"),
        ("engine_hosts: {a: {engine: sim, address: 'http://h:1'}}", "engine_hosts.a.address: must be unix:PATH"),
        ("auth: {store: 'postgres://me:secret@db/x'}", "auth.store: must be sqlite:PATH or the URL of a Redis"),
        ("auth: {store: 'redis:me:secret@db'}", "auth.store: must be sqlite:PATH or the URL of a Redis"),
        ("auth: {address: 'a:1,b:2'}", "auth.address: a list has ip:port only, not 'a:1'"),
        ("auth: {address: '10.0.0.1:1,10.0.0.2:1'}", "auth.address: several replicas need a store that they share"),
        ("edge: {max_buffered_bytes: 1000}", "edge.max_buffered_bytes: must be at least edge.max_body_bytes"),
        ("vllm_host: 0.0.0.0", "vllm_host: must be loopback"),
        ("sglang_host: example.org", "sglang_host: must be loopback"),
        ("fastapi_port: 8002\nvllm: {start_cmd: vllm serve m}", "vllm_port: 8002 is fastapi_port too"),
        ("auth: {metrics_port: 8001}", "auth.metrics_port: 8001 is fastapi_port too; give each a port of its own"),
        (
            "auth: {metrics_port: 9100}\nrouter: {metrics_port: 9100}",
            "router.metrics_port: 9100 is auth.metrics_port too",
        ),
        ("engine_hosts: {a: {engine: vllm, metrics_port: 8002}}", "engine_hosts.a.metrics_port: 8002 is vllm_port too"),
        (
            "engine_hosts: {a: {engine: sim, metrics_port: 91}, b: {engine: sim, metrics_port: 91}}",
            "engine_hosts.b.metrics_port: 91 is engine_hosts.a.metrics_port too",
        ),
        (
            "{vllm: {start_cmd: vllm serve m}, sglang: {start_cmd: sglang serve m}, sglang_port: 8002}",
            "sglang_port: 8002 is vllm_port too",
        ),
        ("engine_hosts: {a: {engine: sglang}, b: {engine: sglang}}", "sglang_port: 8003 is another engine host's too"),
        ("engine_hosts: {a: {engine: vllm}, b: {engine: vllm}}", "vllm_port: 8002 is another engine host's too"),
        (
            "engine_hosts: {a: {engine: vllm, log_file: x}, b: {engine: vllm, port: 1, log_file: x}}",
            "engine_hosts.b.log_file: x is that of a too",
        ),
        ("engine_hosts: {a: {engine: sim, port: 9}}", "engine_hosts.a.port: the simulator has no such setting"),
        ("vllm: {url: 'http://h:1'}", "vllm.url: is for launch_mode attached; here it is python_api"),
        ("vllm: {url: 'ftp://h'}", "vllm.url: must be http://host:port"),
        ("vllm: {url: 'http://user:secret@h'}", "vllm.url: must be http://host:port"),
        (
            "engine_hosts: {a: {engine: vllm, start_cmd_file: typo}}",
            "engine_hosts.a.start_cmd_file: typo is not there",
        ),
        (
            "engine_hosts: {a: {engine: sim}}\nmodel_backend_mapping: {m: sglang}",
            "model_backend_mapping.m: no engine host runs 'sglang' (configured engines: sim)",
        ),
        ("vllm: {start_cmd_file: config/typo.txt}", "vllm.start_cmd_file: config/typo.txt is not there"),
        ("vllm: {start_cmd_file: config}", "vllm.start_cmd_file: config: Is a directory"),
        ("vllm: {start_cmd: 'vllm serve \"m'}", "vllm.start_cmd: No closing quotation"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(load, text: str, said: str) -> None:
    assert f"config.yaml: {said}" in faults(load, text)[0]


@pytest.mark.parametrize(
    "text",
    [
        "auth: {address: '127.0.0.1:0'}",
        "router: {address: '[::1]:50051'}",
        "vllm_host: 127.0.0.1",
        "vllm_host: ::1",
        "fastapi_port: 8002",  # no engine is there
        "fastapi_port: 0\nvllm_port: 0\nvllm: {start_cmd: vllm serve m}",
        "fastapi_host: 192.0.2.7\nfastapi_port: 8002\nvllm: {start_cmd: vllm serve m}",
        "auth: {metrics_port: 0}\nrouter: {metrics_port: 0}",
        "auth: {metrics_port: 8002}\nengine_hosts: {a: {engine: sim, metrics_port: 9100}}",
        "engine_hosts: {a: {engine: vllm}, b: {engine: sim}, c: {engine: sim}}",
    ],
)
def test_what_can_work_is_not_refused(load, text: str) -> None:
    load(text)


def test_a_bad_start_command_is_named_with_its_file(load, write) -> None:
    (write("").parent / "vllm_start_cmd.txt").write_text("vllm serve m --served-model-name 'mine\n")
    (line,) = faults(load, "")
    assert line.endswith("config.yaml: vllm.start_cmd_file config/vllm_start_cmd.txt: No closing quotation")


@pytest.mark.parametrize(
    ("text", "key", "shown"),
    [
        ("fastapi_port: 70000", "fastapi_port", "70000"),
        ("fastapi_port: web", "fastapi_port", "'web'"),
        ("rate_limit: {qps: 0}", "rate_limit.qps", "0"),
        ("rate_limit: {concurrent: -1}", "rate_limit.concurrent", "-1"),
        ("log_level: LOUD", "log_level", "'LOUD'"),
        ("vllm: {launch_mode: docker}", "vllm.launch_mode", "'docker'"),
        ("model_backend_mapping: {m: tgi}", "model_backend_mapping.m", "'tgi'"),
        ("engine_hosts: {'a/b': {engine: sim}}", "engine_hosts", "'a/b'"),
    ],
)
def test_a_bad_value_is_named_with_its_key(load, text: str, key: str, shown: str) -> None:
    (line,) = faults(load, text)
    assert f"config.yaml: {key}: " in line
    assert shown in line


def test_each_fault_has_a_line_of_its_own(load) -> None:
    lines = faults(load, "fastapi_port: -1\nlog_level: 7\nunknown: 1\n")
    assert [line.split(": ")[1] for line in lines] == ["fastapi_port", "log_level", "unknown"]


@pytest.mark.parametrize(
    ("text", "key"),
    [("vllm_port: 1\nvllm_port: 2", "vllm_port"), ("rate_limit:\n  qps: 1\n  qps: 2\n", "qps")],
)
def test_a_key_that_stands_twice_is_refused(load, text: str, key: str) -> None:
    (line,) = faults(load, text)
    assert f"key '{key}' stands twice" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("{{ PORT }}: 1", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("7", "mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(load, text: str, said: str) -> None:
    (line,) = faults(load, text)
    assert said in line


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "absent.yaml")


def test_a_section_with_nothing_below_it_means_its_defaults(load) -> None:
    assert load("vllm:\nedge:\nrate_limit:\nengine_hosts:\nmodel_backend_mapping:\n").settings == Settings()


def test_the_log_level_may_be_lower_case(load) -> None:
    assert load("log_level: debug").settings.log_level == "DEBUG"


@pytest.mark.parametrize(
    ("lora", "cpu", "warned"),
    [
        ("{}", 4, False),
        ("{max_loras: 8}", 8, False),
        ("{max_loras: 2, max_cpu_loras: 16}", 16, False),
        ("{max_loras: 8, max_cpu_loras: 2}", 8, True),
        ("{max_cpu_loras: 2}", 4, True),
    ],
)
def test_max_cpu_loras_is_at_least_max_loras(load, lora: str, cpu: int, warned: bool) -> None:
    loaded = load(f"vllm: {{lora: {lora}}}")
    assert loaded.settings.vllm.lora.max_cpu_loras == cpu
    assert bool(loaded.warnings) == warned


def test_extra_env_takes_numbers_as_text(load) -> None:
    assert load("vllm: {extra_env: {VLLM_CPU_KVCACHE_SPACE: 1}}").settings.vllm.extra_env == {
        "VLLM_CPU_KVCACHE_SPACE": "1"
    }


class TestStartCommand:
    @pytest.fixture
    def command(self, tmp_path: Path, load):
        def from_file(text: str, start_cmd: str = "null") -> str:
            path = tmp_path / "cmd.txt"
            path.write_text(text)
            return load(f"vllm: {{start_cmd_file: {path}, start_cmd: {start_cmd}}}").settings.vllm.command()

        return from_file

    def test_start_cmd_wins_over_the_file(self, command) -> None:
        assert command("vllm serve from-file", start_cmd="vllm serve from-yaml") == "vllm serve from-yaml"

    def test_a_blank_start_cmd_leaves_it_to_the_file(self, command) -> None:
        assert command("vllm serve from-file", start_cmd="'  '") == "vllm serve from-file"

    @pytest.mark.parametrize("text", ["", "\n\n", "# vllm serve m\n", "  # vllm serve m\n\n# --port 1\n"])
    def test_a_file_with_nothing_but_comments_counts_as_none(self, command, text: str) -> None:
        assert command(text) == ""

    def test_continued_lines_and_comments_between_them_become_one_command(self, command) -> None:
        text = "# our model\nvllm serve m \\\n  --dtype bfloat16 \\\n# --enforce-eager \\\n  --max-model-len 2048\n"
        assert command(text) == "vllm serve m --dtype bfloat16 --max-model-len 2048"


class TestHosts:
    def test_none_without_a_start_command(self, tmp_path: Path, load) -> None:
        (tmp_path / "none.txt").write_text("# sglang serve m\n")
        text = f"sglang: {{start_cmd_file: {tmp_path / 'none.txt'}}}\n"
        assert load(text).settings.hosts(tmp_path) == {}

    def test_one_for_each_engine_that_has_a_command_or_is_attached(self) -> None:
        text = {"vllm": {"start_cmd": "vllm serve m"}, "sglang": {"launch_mode": "attached"}}
        hosts = Settings.model_validate(text).hosts()
        assert {name: (spec.engine, spec.address) for name, spec in hosts.items()} == {
            "vllm": ("vllm", "unix:.run/engine-vllm.sock"),
            "sglang": ("sglang", "unix:.run/engine-sglang.sock"),
        }

    def test_named_hosts_replace_the_found_ones(self, load) -> None:
        text = (
            "vllm: {start_cmd: vllm serve m}\nrun_dir: /tmp/r\n"
            "engine_hosts: {a: {engine: sim}, b: {engine: sim, address: '127.0.0.1:9'}}"
        )
        hosts = load(text).settings.hosts()
        assert {name: spec.address for name, spec in hosts.items()} == {
            "a": "unix:/tmp/r/engine-a.sock",
            "b": "127.0.0.1:9",
        }


class TestForHost:
    def test_what_a_host_sets_wins_over_its_engines_section(self, load) -> None:
        text = (
            "vllm_port: 9000\nvllm: {launch_mode: cli, start_cmd: vllm serve m, extra_env: {A: 1}}\n"
            "engine_hosts:\n  a: {engine: vllm}\n"
            "  b: {engine: vllm, launch_mode: attached, url: 'https://h/x/', extra_env: {B: 2}}\n"
            "  c: {engine: vllm, port: 9001, start_cmd_file: config/config.yaml}\n"
        )
        settings = load(text).settings
        a, b, c = (settings.for_host(name) for name in "abc")
        assert (a.vllm.launch_mode, a.vllm_port, a.vllm.extra_env) == ("cli", 9000, {"A": "1"})
        assert (b.vllm.launch_mode, b.vllm.url, b.vllm.extra_env) == ("attached", "https://h/x", {"B": "2"})
        assert (c.vllm_port, c.vllm.start_cmd) == (9001, None)

    def test_hosts_of_one_kind_have_files_of_their_own(self, load) -> None:
        text = "engine_hosts: {a: {engine: vllm}, b: {engine: vllm, port: 1, pid_file: x.pid}}"
        settings = load(text).settings
        assert settings.for_host("a").vllm.log_file == Path("logs/a-engine.log")
        assert settings.for_host("b").vllm.pid_file == Path("x.pid")

    def test_a_host_alone_has_its_sections_files(self) -> None:
        settings = Settings.model_validate({"engine_hosts": {"a": {"engine": "vllm"}}})
        assert settings.for_host("a") == settings == settings.for_host("vllm")


def test_the_root_is_beside_the_config_folder(tmp_path: Path) -> None:
    assert find_root(tmp_path / "config" / "config.yaml") == tmp_path
    assert find_root(tmp_path / "elsewhere" / "mine.yaml") == tmp_path / "elsewhere"


class TestCheckConfig:
    def run(self, path: Path) -> int:
        args = argument_parser("edge").parse_args(["--config", str(path), "--check-config"])
        with pytest.raises(SystemExit) as caught:
            load_or_exit(args)
        assert isinstance(caught.value.code, int)
        return caught.value.code

    def test_a_good_file_exits_0_and_says_its_warnings(self, write, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(write("vllm: {lora: {max_cpu_loras: 2}}")) == 0
        said = capsys.readouterr()
        assert said.out.endswith("config.yaml: good\n")
        assert said.err == "warning: vllm.lora.max_cpu_loras: 2 is below max_loras and was raised to 4\n"

    def test_a_bad_file_exits_2_with_one_line_a_fault(self, write, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(write("fastapi_prot: 1\nlog_level: LOUD\n")) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 2

    def test_a_missing_file_exits_2(self, tmp_path: Path) -> None:
        assert self.run(tmp_path / "absent.yaml") == 2


def test_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("log_level: INFO  # 日志级别".encode("gbk"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(path)
