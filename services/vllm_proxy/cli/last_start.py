"""The configuration that the last start used, kept so that what runs can still be stopped and shown when the file is
broken meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import ValidationError

from vllm_proxy.common.settings import LoadedSettings, Settings, find_root


def save(loaded: LoadedSettings) -> None:
    """Its engine hosts are written out, since the start commands may be broken too."""
    kept = loaded.settings.model_copy(update={"engine_hosts": loaded.settings.hosts()})
    path = _file(loaded.path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_suffix(".new")
    scratch.touch(0o600)  # extra_env may hold secrets
    scratch.write_text(kept.model_dump_json())
    scratch.replace(path)


def load(config_path: Path) -> LoadedSettings | None:
    """None if nothing was started with this file."""
    with contextlib.suppress(OSError, ValidationError):
        settings = Settings.model_validate_json(_file(config_path).read_text())
        return LoadedSettings(settings, config_path.resolve(), find_root(config_path))
    return None


def _file(config_path: Path) -> Path:
    """In the usual run_dir: where this configuration's own is, its file cannot tell any more."""
    return find_root(config_path) / Settings().run_dir / f"last-start-{config_path.stem}.json"
