"""Keys over the auth service's methods: made, shown, changed, rotated, revoked, listed; and what the audit log says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.unit.auth.fakes import Desk, MemoryStore, api_key, servicer_of

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.audit_log import AuditLog
from vllm_proxy.auth.decision import Ask
from vllm_proxy.auth.key_entry import entry_of, parse_entry
from vllm_proxy.auth.keys import KeyRing, KeySource, Rotation, digest_of
from vllm_proxy.auth.lease import Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.store import AuditEntry, AuditForgotten, KeyRevoked, KeyStored
from vllm_proxy.common.errors import (
    AuthUnavailable,
    InvalidApiKey,
    InvalidRequest,
    KeyIsDeclared,
    KeyIsRevoked,
    KeyNotFound,
)

ACTOR = pb.Actor(key_id="0a0b0c0d0e0f", user="root", client_address="10.0.0.7", request_id="r-1")
DAY_MS = 86_400_000


class Context:
    def peer(self) -> str:
        return "unix:"


class Office:
    """A servicer over a memory store; methods by their names, with an actor."""

    def __init__(self, desk: Desk | None = None) -> None:
        self.desk = desk or Desk(api_key("declared", user="dora"))
        self.store = MemoryStore()
        self.servicer = servicer_of(self.desk, self.store, Path("config/api_keys.json"))

    async def ask(self, method: str, **fields: Any) -> Any:
        request = getattr(pb, f"{method}Request")(**fields)
        if request.DESCRIPTOR.fields_by_name.get("actor") and method != "ListAuditLog":
            request.actor.CopyFrom(ACTOR)
        return await getattr(self.servicer, method)(request, Context())

    async def make(self, user: str = "alice", **fields: Any) -> tuple[pb.Key, str]:
        answer = await self.ask("CreateKey", spec=pb.KeySpec(user=user, **fields))
        return answer.key, answer.secret

    def passes(self, secret: str) -> bool:
        """Whether the next admission with this key goes through."""
        asked = Ask(digest_of(secret), Operation.READ)
        return self.desk.admission.admit(asked).refusal is None

    @property
    def audit(self) -> list[AuditEntry]:
        return self.store.records(AuditEntry)

    async def update(self, key: pb.Key, *paths: str, **fields: Any) -> pb.Key:
        mask = FieldMask(paths=paths or list(fields))
        answer = await self.ask("UpdateKey", key_id=key.key_id, spec=pb.KeySpec(**fields), update_mask=mask)
        changed: pb.Key = answer.key
        return changed


class TestCreate:
    async def test_a_secret_has_256_bits_is_shown_once_and_kept_as_a_hash_only(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        office = Office()
        with caplog.at_level("DEBUG"):
            key, secret = await office.make(name="laptop")
        assert len(secret) == 46 and secret.startswith("sk-")
        assert key.prefix == f"{secret[:7]}…"
        assert (key.user, key.spec.name, key.created_by, key.enabled) == ("alice", "laptop", "root", True)
        assert key.source == pb.KEY_SOURCE_CREATED and key.state == pb.KEY_STATE_ACTIVE
        assert office.passes(secret)
        (stored,) = office.store.records(KeyStored)
        assert stored.digest == digest_of(secret)
        everything = repr(office.store.groups) + caplog.text + repr([vars(record) for record in caplog.records])
        assert secret not in everything
        shown = await office.ask("GetKey", key_id=key.key_id)
        assert shown.key == key
        assert digest_of(secret).hex() not in str(shown) + str(await office.ask("ListKeys"))

    async def test_it_is_durable_with_its_line_in_the_audit_log_before_it_is_answered(self) -> None:
        office = Office()
        key, _ = await office.make()
        (group,) = office.store.groups
        assert [type(record) for record in group] == [KeyStored, AuditEntry]
        (line,) = office.audit
        assert line[1:] == ("0a0b0c0d0e0f", "root", "key.create", key.key_id, "ok", "user alice", "10.0.0.7", "r-1")

    async def test_what_it_may_do_is_kept_as_it_was_said(self) -> None:
        office = Office()
        spec = pb.KeySpec(
            user="alice",
            name="n",
            enabled=False,
            quota=1000,
            quota_period=pb.QUOTA_PERIOD_MONTH,
            rate_limit=pb.KeyLimits(qps=2.5, concurrent=0),
            max_response_tokens=0,
            models=pb.ModelPatterns(patterns=["qwen-*"]),
            model_limits={"pirate": pb.KeyLimits(tokens_per_minute=5, max_response_tokens=7)},
            expires_at_ms=1_893_456_000_123,
            priority="3",
            admission_wait_ms=0,
        )
        key = (await office.ask("CreateKey", spec=spec)).key
        assert key.spec == spec
        (stored,) = office.store.records(KeyStored)
        read_again = parse_entry(json.loads(stored.data_json), KeySource.API)
        assert read_again == office.desk.ring.of_account(stored.digest)

    @pytest.mark.parametrize(
        ("spec", "param"),
        [
            (pb.KeySpec(), "user"),
            (pb.KeySpec(user=" x"), "user"),
            (pb.KeySpec(user="x", quota_period=pb.QUOTA_PERIOD_DAY), "quota_period"),
            (pb.KeySpec(user="x", rate_limit=pb.KeyLimits(qps=-1)), "qps"),
            (pb.KeySpec(user="x", models=pb.ModelPatterns(patterns=["\n"])), "models"),
            (pb.KeySpec(user="x", expires_at_ms=2**62), "expires_at"),
        ],
        ids=str,
    )
    async def test_a_bad_field_is_named(self, spec: pb.KeySpec, param: str) -> None:
        office = Office()
        with pytest.raises(InvalidRequest) as raised:
            await office.ask("CreateKey", spec=spec)
        assert raised.value.metadata == {"param": param}
        assert not office.store.records(KeyStored)


class TestUpdate:
    async def test_what_is_not_named_stays_and_what_is_not_set_is_cleared(self) -> None:
        office = Office()
        key, secret = await office.make(quota=10, quota_period=pb.QUOTA_PERIOD_DAY, name="n", priority="low")
        key = await office.update(key, "name", "enabled", enabled=False)
        assert (key.spec.name, key.quota, key.spec.priority) == ("", 10, "low")
        assert not office.passes(secret), "in force for the next admission"
        assert key.state == pb.KEY_STATE_DISABLED
        key = await office.update(key, "quota", "enabled")
        assert not key.HasField("quota")
        assert key.spec.quota_period == pb.QUOTA_PERIOD_UNSPECIFIED, "it goes with its quota"
        assert office.passes(secret)
        assert office.audit[-1].detail == "enabled, quota"

    async def test_without_a_mask_the_fields_that_are_set_are_meant(self) -> None:
        office = Office()
        key, _ = await office.make(name="n")
        answer = await office.ask("UpdateKey", key_id=key.key_id, spec=pb.KeySpec(quota=5))
        assert (answer.key.quota, answer.key.spec.name) == (5, "n")

    async def test_an_expired_key_may_be_given_more_time(self) -> None:
        office = Office()
        now_ms = office.desk.clock.unix_ms()
        key, _ = await office.make(expires_at_ms=now_ms + 1000)
        office.desk.clock.advance(2)
        shown = (await office.ask("GetKey", key_id=key.key_id)).key
        assert shown.state == pb.KEY_STATE_EXPIRED
        key = await office.update(key, expires_at_ms=now_ms + 5000)
        assert key.state == pb.KEY_STATE_ACTIVE

    async def test_nothing_to_change_is_no_change(self) -> None:
        office = Office()
        key, _ = await office.make()
        assert (await office.ask("UpdateKey", key_id=key.key_id)).key == key
        assert len(office.audit) == 1

    async def test_an_unknown_field_and_a_bad_value_change_nothing(self) -> None:
        office = Office()
        key, _ = await office.make()
        with pytest.raises(InvalidRequest):
            await office.update(key, "secret")
        with pytest.raises(InvalidRequest):
            await office.update(key, "user")
        assert len(office.store.records(KeyStored)) == 1
        assert office.audit[-1].outcome == "INVALID_REQUEST"

    async def test_two_changes_at_once_are_both_there(self) -> None:
        office = Office()
        key, _ = await office.make()
        await asyncio.gather(office.update(key, quota=5), office.update(key, name="n"))
        shown = (await office.ask("GetKey", key_id=key.key_id)).key
        assert (shown.quota, shown.spec.name) == (5, "n")


class TestRotate:
    async def test_the_old_secret_lapses_by_itself_and_the_account_stays(self) -> None:
        office = Office(Desk(api_key("declared")))
        key, first = await office.make(quota=100_000)
        admitted = office.desk.admission.admit(Ask(digest_of(first), Operation.INFERENCE, prompt_tokens=10))
        rotated = await office.ask("RotateKey", key_id=key.key_id, overlap_ms=60_000)
        second = rotated.secret
        assert rotated.key.key_id == key.key_id
        assert rotated.key.prefix == f"{second[:7]}…" != key.prefix
        assert rotated.key.old_secret_expires_at_ms == office.desk.clock.unix_ms() + 60_000
        assert office.passes(first) and office.passes(second)
        again = office.desk.admission.admit(Ask(digest_of(second), Operation.INFERENCE, prompt_tokens=10))
        assert again.key_id == admitted.key_id
        assert again.quota_remaining is not None and admitted.quota_remaining is not None
        assert again.quota_remaining < admitted.quota_remaining, "one account"
        office.desk.clock.advance(60)
        office.desk.admission.tick()
        assert not office.passes(first) and office.passes(second)
        shown = (await office.ask("GetKey", key_id=key.key_id)).key
        assert not shown.HasField("old_secret_expires_at_ms")

    async def test_the_overlap_has_a_default_and_may_be_nothing(self) -> None:
        office = Office()
        key, first = await office.make()
        rotated = await office.ask("RotateKey", key_id=key.key_id)
        assert rotated.key.old_secret_expires_at_ms == office.desk.clock.unix_ms() + DAY_MS
        third = (await office.ask("RotateKey", key_id=key.key_id, overlap_ms=0)).secret
        assert not office.passes(first) and not office.passes(rotated.secret) and office.passes(third)

    async def test_a_second_rotation_ends_the_first_overlap(self) -> None:
        office = Office()
        key, first = await office.make()
        second = (await office.ask("RotateKey", key_id=key.key_id, overlap_ms=60_000)).secret
        third = (await office.ask("RotateKey", key_id=key.key_id, overlap_ms=120_000)).secret
        assert [office.passes(secret) for secret in (first, second, third)] == [False, True, True]
        office.desk.clock.advance(60)
        office.desk.admission.tick()
        assert office.passes(second), "the first overlap's end concerns it no more"
        office.desk.clock.advance(60)
        office.desk.admission.tick()
        assert not office.passes(second) and office.passes(third)

    async def test_a_change_and_a_restart_keep_the_overlap(self) -> None:
        office = Office()
        key, first = await office.make()
        second = (await office.ask("RotateKey", key_id=key.key_id, overlap_ms=60_000)).secret
        await office.update(key, name="n")
        assert office.passes(first) and office.passes(second)
        stored = office.store.records(KeyStored)[-1]
        ring = KeyRing((), [parse_entry(json.loads(stored.data_json), KeySource.API)])
        assert ring.find(digest_of(first)) is not None and ring.find(digest_of(second)) is not None
        ring.lapse(office.desk.clock.unix_ms() + 60_000)
        assert ring.find(digest_of(first)) is None and ring.find(digest_of(second)) is not None

    async def test_no_stored_hash_of_a_rotation_may_stand_in_the_keys_file(self) -> None:
        made = parse_entry({"key": "sk-x", "user": "u"}, KeySource.API)
        rotated = replace(made, prefix="", rotation=Rotation(digest_of("sk-y"), made.digest, 5))
        assert parse_entry(entry_of(rotated), KeySource.API) == rotated
        with pytest.raises(ValueError, match="unknown field"):
            parse_entry(entry_of(rotated))


class TestRevoke:
    async def test_a_revoked_key_is_refused_at_once_and_what_it_runs_settles(self) -> None:
        office = Office()
        key, secret = await office.make()
        admission = office.desk.admission
        running = admission.admit(Ask(digest_of(secret), Operation.INFERENCE, "edge-1", prompt_tokens=10))
        second = (await office.ask("RotateKey", key_id=key.key_id)).secret
        revoked = (await office.ask("DeleteKey", key_id=key.key_id)).key
        assert revoked.state == pb.KEY_STATE_REVOKED and revoked.HasField("revoked_at_ms")
        assert not office.passes(secret) and not office.passes(second)
        assert office.desk.settle(running.lease_id, completion=5).applied
        shown = (await office.ask("GetKey", key_id=key.key_id)).key
        assert (shown.completion_tokens, shown.state) == (5, pb.KEY_STATE_REVOKED)

    async def test_again_changes_nothing(self) -> None:
        office = Office()
        key, _ = await office.make()
        first = await office.ask("DeleteKey", key_id=key.key_id)
        office.desk.clock.advance(10)
        assert await office.ask("DeleteKey", key_id=key.key_id) == first.__class__(key=first.key)
        assert len(office.store.records(KeyRevoked)) == 1

    async def test_nothing_brings_it_back(self) -> None:
        office = Office()
        key, secret = await office.make()
        await office.ask("DeleteKey", key_id=key.key_id)
        with pytest.raises(KeyIsRevoked):
            await office.update(key, enabled=True)
        with pytest.raises(KeyIsRevoked):
            await office.ask("RotateKey", key_id=key.key_id)
        assert not office.passes(secret)


async def test_nothing_is_begun_while_the_store_is_away() -> None:
    office = Office()
    key, secret = await office.make()
    office.store.accepting = False
    for method in ("UpdateKey", "DeleteKey", "RotateKey"):
        with pytest.raises(AuthUnavailable):
            await office.ask(method, key_id=key.key_id)
    with pytest.raises(AuthUnavailable):
        await office.make()
    assert office.passes(secret)


@pytest.mark.parametrize("method", ["UpdateKey", "DeleteKey", "RotateKey"])
class TestOthers:
    async def test_a_declared_key_is_refused_and_says_where_it_stands(self, method: str) -> None:
        office = Office()
        key_id = office.desk.key.key_id
        with pytest.raises(KeyIsDeclared, match=r"config/api_keys\.json.*reload"):
            await office.ask(method, key_id=key_id)
        (line,) = office.audit
        assert (line.target, line.outcome) == (key_id, "KEY_IS_DECLARED")

    @pytest.mark.parametrize("key_id", ["ffffffffffff", "", "nonsense", "fffffffffff", "zz" * 6])
    async def test_an_unknown_one_is_not_found(self, method: str, key_id: str) -> None:
        with pytest.raises(KeyNotFound):
            await Office().ask(method, key_id=key_id)


class TestList:
    async def test_declared_keys_come_first_and_every_key_once(self) -> None:
        office = Office(Desk(*(api_key(f"declared-{number}") for number in range(3))))
        made = []
        for number in range(4):
            made.append((await office.make(user="bob" if number == 2 else "alice"))[0].key_id)
            office.desk.clock.advance(1)
        declared = [key.key_id for key in office.desk.ring.declared()]
        for size in (1, 2, 3, 4, 7, 50):
            listed, token = [], ""
            for _ in range(20):
                page = await office.ask("ListKeys", page_size=size, page_token=token)
                assert len(page.keys) <= size
                listed += [key.key_id for key in page.keys]
                token = page.next_page_token
                if not token:
                    break
            assert listed == [*declared, *made], size
        bobs = await office.ask("ListKeys", user="bob")
        assert [key.key_id for key in bobs.keys] == [made[2]]
        await office.ask("DeleteKey", key_id=made[0])
        assert made[0] not in [key.key_id for key in (await office.ask("ListKeys")).keys]
        assert made[0] in [key.key_id for key in (await office.ask("ListKeys", show_revoked=True)).keys]

    async def test_a_page_asks_the_store_for_a_page(self) -> None:
        office = Office()
        await office.ask("ListKeys", page_size=10)
        assert [query.max_rows for query in office.store.key_queries] == [10]

    async def test_looking_at_keys_makes_no_accounts(self) -> None:
        office = Office()
        for _ in range(5):
            await office.make()
        await office.ask("ListKeys")
        assert not office.desk.admission._accounts._accounts

    @pytest.mark.parametrize("token", ["x", "e30=", "WzEsICJ6eiJd", "bnVsbA==", "W10=", "WyIxIl0="])
    async def test_a_token_of_somebody_else_is_refused(self, token: str) -> None:
        with pytest.raises(InvalidRequest):
            await Office().ask("ListKeys", page_token=token)
        with pytest.raises(InvalidRequest):
            await Office().ask("ListKeys", page_size=1001)


class TestUsage:
    def used(self, office: Office, secret: str, model: str, base: str, tokens: int) -> None:
        admission = office.desk.admission
        lease = admission.admit(Ask(digest_of(secret), Operation.INFERENCE, "e", model=model, prompt_tokens=1))
        settled = Settlement(
            lease.lease_id, 1, Source.EDGE, Outcome.FINISHED, Usage(tokens, 0, tokens), model, "h", base
        )
        office.store.append(admission.book.settle(settled).records, lambda: None)

    async def test_by_key_model_and_adapter(self) -> None:
        office = Office()
        key, secret = await office.make()
        other, other_secret = await office.make("bob")
        self.used(office, secret, "base", "base", 1)
        self.used(office, secret, "pirate", "base", 2)
        self.used(office, other_secret, "pirate", "base", 4)
        answer = await office.ask("QueryUsage", group_by=[pb.USAGE_GROUP_ADAPTER])
        assert [(row.adapter, row.requests, row.completion_tokens) for row in answer.rows] == [
            ("", 1, 1),
            ("pirate", 2, 6),
        ]
        answer = await office.ask("QueryUsage", group_by=[pb.USAGE_GROUP_KEY, pb.USAGE_GROUP_BASE_MODEL])
        assert {(row.key_id, row.base_model): row.prompt_tokens for row in answer.rows} == {
            (key.key_id, "base"): 3,
            (other.key_id, "base"): 4,
        }
        (total,) = (await office.ask("QueryUsage", user="bob")).rows
        assert (total.prompt_tokens, total.HasField("user")) == (4, False)
        (total,) = (await office.ask("QueryUsage", key_id=key.key_id)).rows
        assert total.prompt_tokens == 3

    async def test_pages_have_every_group_once(self) -> None:
        office = Office()
        for user in ("a", "b", "c"):
            _, secret = await office.make(user)
            for model in ("m1", "m2"):
                self.used(office, secret, model, model, 1)
        groups = [pb.USAGE_GROUP_KEY, pb.USAGE_GROUP_DAY, pb.USAGE_GROUP_MODEL]
        whole = (await office.ask("QueryUsage", group_by=groups)).rows
        assert len(whole) == 6
        rows, token = [], ""
        while True:
            page = await office.ask("QueryUsage", group_by=groups, page_size=4, page_token=token)
            rows += page.rows
            token = page.next_page_token
            if not token:
                break
        assert rows == list(whole)

    @pytest.mark.parametrize(
        "fields",
        [
            {"group_by": [pb.USAGE_GROUP_UNSPECIFIED]},
            {"group_by": [pb.USAGE_GROUP_KEY, pb.USAGE_GROUP_KEY]},
            {"group_by": [pb.USAGE_GROUP_HOUR, pb.USAGE_GROUP_DAY]},
            {"key_id": "x"},
            {"from_ms": 2 * DAY_MS, "to_ms": DAY_MS},
            {"page_size": 10_001},
            {"page_token": "W10=", "group_by": [pb.USAGE_GROUP_KEY]},
            {"page_token": "WzFd", "group_by": [pb.USAGE_GROUP_KEY]},
        ],
        ids=str,
    )
    async def test_a_bad_question_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest):
            await Office().ask("QueryUsage", **fields)

    async def test_a_keys_own_view(self) -> None:
        office = Office()
        _, secret = await office.make(
            quota=1000, quota_period=pb.QUOTA_PERIOD_DAY, rate_limit=pb.KeyLimits(qps=5, tokens_per_minute=600)
        )
        self.used(office, secret, "m", "m", 10)
        view = await office.ask("GetOwnUsage", api_key_sha256=digest_of(secret))
        assert (view.key.quota_used, view.quota_remaining) == (20, 980)
        assert view.key.quota_resets_at_ms % DAY_MS == 0
        assert (view.limits.qps, view.limits.HasField("concurrent")) == (5, False)
        assert (view.requests.limit, view.requests.remaining) == (5, 4)
        assert view.tokens.limit == 600
        ((row),) = view.rows
        assert (row.model, row.prompt_tokens, row.completion_tokens, row.start_ms % DAY_MS) == ("m", 10, 10, 0)
        with pytest.raises(InvalidApiKey):
            await office.ask("GetOwnUsage", api_key_sha256=digest_of("sk-none"))

    async def test_a_keys_own_view_after_a_rotation(self) -> None:
        office = Office()
        key, secret = await office.make()
        self.used(office, secret, "m", "m", 10)
        second = (await office.ask("RotateKey", key_id=key.key_id)).secret
        view = await office.ask("GetOwnUsage", api_key_sha256=digest_of(second))
        assert [row.prompt_tokens for row in view.rows] == [10]

    async def test_last_used_costs_no_write(self) -> None:
        office = Office()
        key, secret = await office.make()
        assert not key.HasField("last_used_at_ms")
        self.used(office, secret, "m", "m", 1)
        written = len(office.store.groups)
        shown = (await office.ask("GetKey", key_id=key.key_id)).key
        assert shown.last_used_at_ms == office.desk.clock.unix_ms()
        assert len(office.store.groups) == written


class TestAudit:
    async def test_pages_are_the_newest_first(self) -> None:
        office = Office()
        for number in range(5):
            await office.ask("RecordAction", action="adapter.load", target=f"a{number}", outcome="ok", detail="x")
        first = await office.ask("ListAuditLog", page_size=3)
        assert [entry.target for entry in first.entries] == ["a4", "a3", "a2"]
        assert first.entries[0].actor == ACTOR
        second = await office.ask("ListAuditLog", page_size=3, page_token=first.next_page_token)
        assert [entry.target for entry in second.entries] == ["a1", "a0"]
        assert not second.next_page_token

    async def test_a_caller_that_says_nothing_is_internal(self) -> None:
        office = Office()
        request = pb.RecordActionRequest(action="x", outcome="ok")
        await office.servicer.RecordAction(request, Context())
        (line,) = office.audit
        assert (line.actor_user, line.source_address) == ("internal", "unix:")

    async def test_an_action_without_a_name_is_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            await Office().ask("RecordAction", action="", outcome="ok")

    async def test_a_reload_is_entered_however_it_ends(self, tmp_path: Path) -> None:
        office = Office()
        office.servicer._keys_file = tmp_path / "keys.json"
        with pytest.raises(InvalidRequest):
            await office.ask("ReloadKeys")
        (tmp_path / "keys.json").write_text('{"keys": [{"key": "sk-a", "user": "a"}, {"key": 7}]}')
        await office.ask("ReloadKeys")
        assert [(line.action, line.outcome, line.detail[:7]) for line in office.audit] == [
            ("keys.reload", "INVALID_REQUEST", office.audit[0].detail[:7]),
            ("keys.reload", "ok", "1 keys,"),
        ]

    async def test_old_entries_are_forgotten_now_and_then(self) -> None:
        desk = Desk()
        audit = AuditLog(MemoryStore(), desk.clock, 365)
        assert audit.tick() == [AuditForgotten(desk.clock.unix_ms() - 365 * DAY_MS)]
        assert audit.tick() == []
        desk.clock.advance(3600)
        assert len(audit.tick()) == 1


def test_rotation_leaves_the_lookup_of_other_keys_alone() -> None:
    """The rule that admission depends on: of a rotated key only its secrets are keys, its account is none."""
    made = parse_entry({"key": "sk-first", "user": "u"}, KeySource.API)
    rotated: Callable[[int], Any] = lambda until: replace(  # noqa: E731
        made, rotation=Rotation(digest_of("sk-second"), digest_of("sk-first"), until)
    )
    ring = KeyRing((), [rotated(0)])
    assert ring.find(digest_of("sk-first")) is None
    assert ring.find(digest_of("sk-second")) is ring.of_account(made.digest)
    ring.put(rotated(10))
    assert ring.find(digest_of("sk-first")) is not None
    ring.remove(made.digest)
    assert ring.find(digest_of("sk-first")) is ring.find(digest_of("sk-second")) is None
