"""One key as lines for people."""

from __future__ import annotations

from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.views import key_view


def key_fields(key: auth_pb2.Key) -> list[tuple[str, Any]]:
    fields = key_view(key)
    quota = fields["quota"]
    period = "" if fields["quota_period"] in (None, "total") else f" a {fields['quota_period']}"
    return [
        ("id", fields["id"]),
        ("key", fields["prefix"]),
        ("user", fields["user"]),
        ("name", fields["name"]),
        ("state", fields["state"]),
        ("source", "the keys file (change it there)" if fields["source"] == "declared" else "made here"),
        ("quota", "unlimited" if quota is None else f"{quota:,} tokens{period}, {fields['quota_used'] or 0:,} used"),
        ("quota resets", _utc(fields["quota_resets_at"])),
        *(
            (name.replace("_", " "), "unlimited" if value is None else value)
            for name, value in fields["rate_limit"].items()
        ),
        ("max response tokens", fields["max_response_tokens"]),
        ("models", "none" if fields["models"] == [] else fields["models"]),
        *(
            (f"for {pattern}", ", ".join(f"{name} {value or 'unlimited'}" for name, value in limits.items()))
            for pattern, limits in fields["model_limits"].items()
        ),
        ("expires", _utc(fields["expires_at"])),
        ("priority", fields["priority"]),
        ("waits", None if fields["admission_wait_ms"] is None else f"{fields['admission_wait_ms']} ms for a limit"),
        ("created", _utc(fields["created_at"])),
        ("created by", fields["created_by"]),
        ("last used", _utc(fields["last_used_at"]) or "never"),
        ("old secret good until", _utc(fields["old_secret_expires_at"])),
        ("revoked", _utc(fields["revoked_at"])),
        ("running", fields["running"]),
        ("requests", fields["usage"]["requests"]),
        ("prompt tokens", fields["usage"]["prompt_tokens"]),
        ("completion tokens", fields["usage"]["completion_tokens"]),
    ]


def _utc(moment: str | None) -> str | None:
    return f"{moment[:19].replace('T', ' ')} UTC" if moment else None
