"""What a user is shown after a start: how to talk to what was started."""

from __future__ import annotations

import json
import shlex
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from scripts.supervisor_config import Program, nginx_url

from vllm_proxy.cli.services import edge_url
from vllm_proxy.common.settings import LoadedSettings

DEFAULT_KEY = "sk-default-key-change-me"


def show_welcome(loaded: LoadedSettings, wanted: Sequence[Program], keys_are_new: bool, seconds: float) -> None:
    """How to talk to what was started. `keys_are_new`: this start made the keys file."""
    keys_file = loaded.settings.api_keys_file
    keys = _keys(loaded.root / keys_file)
    admin_key = next((key for key, user in keys if user == "admin"), "") if keys_are_new else ""
    if not any(program.name == "edge" for program in wanted):
        print(f"up after {seconds:.0f} s: {', '.join(program.name for program in wanted)}", flush=True)
        if admin_key:
            print(_admin_line(admin_key, keys_file), flush=True)
        return
    url = edge_url(loaded.settings)
    key = _first_key(keys)
    model = _first_model(url, key)
    # A key of the user's own is not printed: terminals are recorded.
    shown_key, where = (key, f"(replace it: {keys_file})") if key == DEFAULT_KEY else ("$KEY", f"(one of {keys_file})")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": model or "MODEL", "messages": question, "max_tokens": 64})
    print(
        f"\nvLLM Proxy is up after {seconds:.0f} s",
        f"  URL    {url}/v1",
        *([f"  nginx  {nginx_url(loaded.settings)}/v1"] if any(p.name == "nginx" for p in wanted) else []),
        f"  Key    {shown_key} {where}",
        *([_admin_line(admin_key, keys_file)] if admin_key else []),
        f"  Model  {model or 'none: see make status'}",
        "\nTry it:",
        f"  curl {url}/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {shown_key}" -H "Content-Type: application/json" \\',
        f"    -d {shlex.quote(body)}",
        "\nSee also: make status, make logs SERVICE=edge, make stop\n",
        sep="\n",
        flush=True,
    )


def _admin_line(key: str, keys_file: Path) -> str:
    return f"  Admin  {key} (shown this once; it is in {keys_file})"


def _keys(path: Path) -> list[tuple[str, str]]:
    """(key, user) of the enabled entries that are not declared by their hash alone."""
    try:
        rows = json.loads(path.read_text())["keys"]
        return [(str(r["key"]), str(r.get("user", ""))) for r in rows if r.get("enabled", True) and r.get("key")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _first_key(keys: Sequence[tuple[str, str]]) -> str:
    """The default key if it is still there, else the first; empty if there is none."""
    names = [key for key, _ in keys]
    return DEFAULT_KEY if DEFAULT_KEY in names else next(iter(names), "")


def _first_model(url: str, key: str) -> str:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
