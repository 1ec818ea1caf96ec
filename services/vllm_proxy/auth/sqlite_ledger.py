"""The ledger's sums: rows are folded into balances and hours some time after they were appended, and forgotten when
they are folded and old. An UPDATE per settlement would grow with the number of keys; appending does not."""

from __future__ import annotations

import sqlite3

from vllm_proxy.auth.sqlite_file import transaction

_SUMS = (
    "sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(requests), sum(charged_tokens), "
    "max(settled_at_ms)"
)
_ADD = """ DO UPDATE SET
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens, requests = requests + excluded.requests,
    charged_tokens = charged_tokens + excluded.charged_tokens"""
_ADD_AND_DATE = f"{_ADD}, last_used_ms = max(last_used_ms, excluded.last_used_ms)"
_COLUMNS = "prompt_tokens, cached_tokens, completion_tokens, requests, charged_tokens, last_used_ms"
_FOLDS = (
    f"""INSERT INTO balances (account, {_COLUMNS})
    SELECT account, {_SUMS} FROM ledger WHERE id > ?1 AND id <= ?2 GROUP BY account
    ON CONFLICT (account) {_ADD_AND_DATE}""",
    f"""INSERT INTO user_balances (user, {_COLUMNS})
    SELECT user, {_SUMS} FROM ledger WHERE id > ?1 AND id <= ?2 GROUP BY user
    ON CONFLICT (user) {_ADD_AND_DATE}""",
    # A model that was asked for in vain may be any text: such requests share one name.
    f"""INSERT INTO usage_hours (hour, account, user, model, base_model,
        prompt_tokens, cached_tokens, completion_tokens, charged_tokens, requests)
    SELECT settled_at_ms / 3600000, account, user, iif(prompt_tokens OR completion_tokens, model, '') AS known,
        base_model, sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(charged_tokens), sum(requests)
    FROM ledger WHERE id > ?1 AND id <= ?2 GROUP BY 1, 2, 3, 4, 5
    ON CONFLICT (hour, account, user, model, base_model) {_ADD}""",
)


def fold(db: sqlite3.Connection, max_rows: int) -> bool:
    """Adds the next rows to the sums, in a transaction of its own. Returns whether there are more."""
    with transaction(db):
        (through,) = db.execute("SELECT through_id FROM folded").fetchone()
        (last,) = db.execute("SELECT coalesce(max(id), 0) FROM ledger").fetchone()
        until = min(last, through + max_rows)
        if until > through:
            for statement in _FOLDS:
                db.execute(statement, (through, until))
            db.execute("UPDATE folded SET through_id = ?", (until,))
    return bool(until < last)


def forget(db: sqlite3.Connection, before_ms: int, max_rows: int) -> bool:
    """Deletes rows that are folded and older, in a transaction of its own. Returns whether there may be more.

    The last one stays: ids go on from it.
    """
    with transaction(db):
        deleted = db.execute(
            "DELETE FROM ledger WHERE id IN (SELECT id FROM ledger "
            "WHERE id < (SELECT through_id FROM folded) ORDER BY id LIMIT ?) AND settled_at_ms < ?",
            (max_rows, before_ms),
        ).rowcount
    return deleted == max_rows
