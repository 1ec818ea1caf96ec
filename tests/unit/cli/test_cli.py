"""The command line: what is asked of the service, what people and programs see, how failures are told."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.cli import main as cli
from vllm_proxy.cli.output import squeeze
from vllm_proxy.cli.values import ago_ms, ahead_ms, duration_s, quantity
from vllm_proxy.common.errors import KeyIsDeclared, ServiceError
from vllm_proxy.common.rpc.status import to_status

SECRET = "sk-" + "a" * 43
DAY_MS = 1_700_006_400_000


class Service:
    """Answers each method with what the test put there, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[Any] = []

    def __getattr__(self, method: str) -> Any:
        async def call(message: Any, timeout: float) -> Any:
            copy = type(message)()
            copy.CopyFrom(message)
            self.asked.append(copy)
            answer = self.answers[method]
            answer = answer.pop(0) if isinstance(answer, list) else answer
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


Run = Callable[..., int]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Service:
    service = Service()
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vllm_proxy.api.auth.v1.auth_pb2_grpc.AuthServiceStub", lambda channel: service)
    return service


@pytest.fixture
def run(service: Service) -> Run:
    return lambda *arguments: cli.main(["--config", "config.yaml", *arguments])


def a_key(**fields: Any) -> pb.Key:
    spec = pb.KeySpec(user="alice", name="laptop", rate_limit=pb.KeyLimits(qps=5, concurrent=0))
    return pb.Key(
        key_id="3f9a00112233",
        prefix="sk-aaaa…",
        user="alice",
        enabled=True,
        spec=spec,
        source=pb.KEY_SOURCE_CREATED,
        state=pb.KEY_STATE_ACTIVE,
        created_at_ms=DAY_MS,
        created_by="cli:root",
        requests=1,
        prompt_tokens=1_234,
        **fields,
    )


def failure(error: ServiceError) -> grpc.aio.AioRpcError:
    status = to_status(error)
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(error.grpc_code, grpc.aio.Metadata(), metadata, details=status.message)


class TestKeys:
    def test_create_prints_the_secret_where_a_program_reads_it(
        self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        service.answers["CreateKey"] = pb.CreateKeyResponse(key=a_key(), secret=SECRET)
        options = "--quota 1.5M --period day --qps 2.5 --concurrent unlimited --tpm 20k --models a,b* --wait 5s"
        assert run("keys", "create", "--user", "alice", "--name", "laptop", *options.split()) == 0
        shown = capsys.readouterr()
        assert shown.out == f"{SECRET}\n"
        assert "3f9a00112233" in shown.err and SECRET not in shown.err
        (asked,) = service.asked
        spec = asked.spec
        assert (spec.user, spec.name, spec.quota, spec.quota_period) == ("alice", "laptop", 1_500_000, 2)
        limits = spec.rate_limit
        assert (limits.qps, limits.HasField("concurrent"), limits.concurrent) == (2.5, True, 0)
        assert (limits.tokens_per_minute, list(spec.models.patterns), spec.admission_wait_ms) == (
            20_000,
            ["a", "b*"],
            5000,
        )
        assert asked.actor.user.startswith("cli:") and asked.actor.client_address == "local"

    def test_quiet_and_json(self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        service.answers["CreateKey"] = pb.CreateKeyResponse(key=a_key(), secret=SECRET)
        assert run("keys", "create", "--user", "a", "-q") == 0
        assert capsys.readouterr() == (f"{SECRET}\n", "")
        assert run("keys", "create", "--user", "a", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["key"], answer["id"], answer["rate_limit"]) == (
            SECRET,
            "3f9a00112233",
            {"qps": 5, "concurrent": None},
        )

    def test_update_names_what_it_means_and_clears_with_none(self, service: Service, run: Run) -> None:
        service.answers |= {"UpdateKey": pb.UpdateKeyResponse(key=a_key()), "GetKey": pb.GetKeyResponse(key=a_key())}
        assert run("keys", "update", "3f9a00112233", "--quota", "none", "--disable", "--expires", "none") == 0
        asked = service.asked[-1]
        assert sorted(asked.update_mask.paths) == ["enabled", "expires_at_ms", "quota"]
        assert not asked.spec.HasField("quota") and not asked.spec.enabled

    def test_update_changes_one_rate_limit_and_keeps_the_others(self, service: Service, run: Run) -> None:
        service.answers |= {"UpdateKey": pb.UpdateKeyResponse(key=a_key()), "GetKey": pb.GetKeyResponse(key=a_key())}
        assert run("keys", "update", "3f9a00112233", "--qps", "none", "--tpm", "100") == 0
        limits = service.asked[-1].spec.rate_limit
        assert not limits.HasField("qps")
        assert (limits.HasField("concurrent"), limits.concurrent, limits.tokens_per_minute) == (True, 0, 100)

    def test_list_reads_every_page_and_shows_a_table(
        self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pages = [pb.ListKeysResponse(keys=[a_key()], next_page_token="more"), pb.ListKeysResponse(keys=[a_key()])]
        service.answers["ListKeys"] = list(pages)
        assert run("keys", "list", "--user", "alice", "--all") == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert header.split()[:5] == ["ID", "KEY", "USER", "NAME", "STATE"]
        assert len(rows) == 2 and "1,234" in rows[0] and "\033" not in header
        assert [(m.user, m.show_revoked, m.page_token) for m in service.asked] == [
            ("alice", True, ""),
            ("alice", True, "more"),
        ]
        service.answers["ListKeys"] = list(pages)
        assert run("keys", "list", "--limit", "1", "--json") == 0
        assert len(json.loads(capsys.readouterr().out)) == 1

    def test_show_has_no_line_for_what_is_not_said(
        self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        service.answers["GetKey"] = pb.GetKeyResponse(key=a_key())
        assert run("keys", "show", "3f9a00112233") == 0
        shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        told = {name.strip(): value.strip() for name, value in shown.items()}
        assert (told["concurrent"], told["qps"], told["created"]) == ("unlimited", "5", "2023-11-15 00:00:00 UTC")
        assert "expires" not in told

    def test_rotate_and_revoke(self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        service.answers |= {
            "RotateKey": pb.RotateKeyResponse(key=a_key(old_secret_expires_at_ms=DAY_MS), secret=SECRET),
            "DeleteKey": pb.DeleteKeyResponse(key=a_key()),
        }
        assert run("keys", "rotate", "3f9a00112233", "--overlap", "12h") == 0
        assert service.asked[-1].overlap_ms == 12 * 3_600_000
        assert "2023-11-15" in capsys.readouterr().err
        assert run("keys", "rotate", "3f9a00112233", "-q") == 0
        assert not service.asked[-1].HasField("overlap_ms")
        assert run("keys", "revoke", "a", "b") == 0
        assert [message.key_id for message in service.asked[-2:]] == ["a", "b"]

    def test_reload_fails_for_what_was_skipped(
        self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        service.answers["ReloadKeys"] = pb.ReloadKeysResponse(keys=2)
        assert run("keys", "reload") == 0
        assert capsys.readouterr() == ("2 keys are in force.\n", "")
        service.answers["ReloadKeys"] = pb.ReloadKeysResponse(keys=2, problems=["entry 3: no key"])
        assert run("keys", "reload") == 1
        assert "entry 3" in capsys.readouterr().err

    def test_colours_are_for_a_terminal(
        self, service: Service, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "70")
        service.answers["ListKeys"] = pb.ListKeysResponse(keys=[a_key()])
        assert run("keys", "list") == 0
        shown = capsys.readouterr().out
        assert "\033[32mactive" in shown and "…" in shown
        monkeypatch.setenv("NO_COLOR", "1")
        assert run("keys", "list") == 0
        assert "\033" not in capsys.readouterr().out


class TestUsageAndAudit:
    def rows(self) -> list[pb.UsageRow]:
        counts = {"requests": 2, "prompt_tokens": 10, "completion_tokens": 5, "charged_tokens": 15}
        return [pb.UsageRow(user=user, start_ms=DAY_MS, **counts) for user in ("a", "b")]

    def test_a_table_with_a_total(self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        service.answers["QueryUsage"] = pb.QueryUsageResponse(rows=self.rows())
        assert run("usage", "--by", "day,user", "--from", "2023-11-15") == 0
        header, *lines = capsys.readouterr().out.splitlines()
        assert header.split() == ["DAY", "USER", "REQUESTS", "PROMPT", "CACHED", "COMPLETION", "TOTAL"]
        assert lines[-1].split() == ["total", "4", "20", "0", "10", "30"]
        assert service.asked[0].from_ms == DAY_MS
        assert list(service.asked[0].group_by) == [pb.USAGE_GROUP_DAY, pb.USAGE_GROUP_USER]

    def test_csv_and_json_have_every_page(self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        first, second = self.rows()
        pages = [pb.QueryUsageResponse(rows=[first], next_page_token="more"), pb.QueryUsageResponse(rows=[second])]
        service.answers["QueryUsage"] = list(pages)
        assert run("usage", "--csv") == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(row["user"], row["total_tokens"]) for row in rows] == [("a", "15"), ("b", "15")]
        service.answers["QueryUsage"] = list(pages)
        assert run("usage", "--json") == 0
        assert [row["user"] for row in json.loads(capsys.readouterr().out)] == ["a", "b"]

    def test_the_audit_log_up_to_a_limit(self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        entry = pb.AuditEntry(at_ms=DAY_MS, actor=pb.Actor(user="ad\033[31mmin"), action="key.create", outcome="ok")
        service.answers["ListAuditLog"] = [
            pb.ListAuditLogResponse(entries=[entry] * 2, next_page_token="more"),
            pb.ListAuditLogResponse(entries=[entry], next_page_token="more"),
        ]
        assert run("audit", "--limit", "3", "--action", "key.") == 0
        _, *lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 and lines[0].startswith("2023-11-15 00:00:00")
        assert "\033" not in lines[0], "nobody's name steers the terminal"
        assert [message.page_size for message in service.asked] == [3, 1]


class TestFailures:
    def test_a_refusal_is_one_line(self, service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        service.answers["DeleteKey"] = failure(KeyIsDeclared("The key is declared\nin config/api_keys.json."))
        assert run("keys", "revoke", "a") == 1
        assert capsys.readouterr().err == "vllm-proxy: The key is declared in config/api_keys.json.\n"
        assert run("keys", "revoke", "a", "--json") == 1
        assert json.loads(capsys.readouterr().err)["error"].startswith("The key is declared")

    @pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
    def test_a_service_that_does_not_answer(
        self, service: Service, run: Run, capsys: pytest.CaptureFixture[str], code: grpc.StatusCode
    ) -> None:
        service.answers["ListKeys"] = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())
        assert run("keys", "list") == 3
        assert "make start-auth" in capsys.readouterr().err

    def test_a_configuration_that_is_not_there(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--config", "nowhere.yaml", "keys", "list"]) == 2
        assert "nowhere.yaml" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["keys"],
            ["keys", "create"],
            ["keys", "create", "--user", "a", "--quota", "many"],
            ["keys", "create", "--user", "a", "--qps", "x"],
            ["keys", "create", "--user", "a", "--enable", "--disable"],
            ["keys", "rotate", "a", "--overlap", "soon"],
            ["usage", "--from", "yesterday"],
        ],
        ids=" ".join,
    )
    def test_wrong_arguments(self, service: Service, run: Run, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 2
        assert not service.asked

    def test_nothing_to_change(self, service: Service, run: Run) -> None:
        assert run("keys", "update", "a") == 2
        assert run("usage", "--by", "week") == 2


class TestValues:
    def test_quantities_and_times(self) -> None:
        assert [quantity(text) for text in ("5", "20k", "1.5M", "2g", "1_000")] == [
            5,
            20_000,
            1_500_000,
            2 * 10**9,
            1000,
        ]
        assert [duration_s(text) for text in ("0", "90s", "1.5h", "2w")] == [0, 90, 5400, 1_209_600]
        assert ago_ms("2023-11-15") == ahead_ms("2023-11-15T01:00+01:00") == DAY_MS
        assert ahead_ms("1h") - ago_ms("1h") >= 2 * 3_600_000
        for parse in (quantity, duration_s, ago_ms):
            with pytest.raises(argparse.ArgumentTypeError):
                parse("5 apples")  # type: ignore[operator]

    def test_a_table_fits_the_terminal_by_its_widest_text(self) -> None:
        widths = [12, 40, 30, 9]
        squeeze(widths, [False, False, False, True], 60)
        assert sum(widths) + 6 == 60
        assert widths[0] == 12 and widths[3] == 9
        narrow = [12, 9]
        squeeze(narrow, [False, True], 10)
        assert narrow == [8, 9], "no further than what can still be read"
