"""Reads a configuration file: YAML, overrides, the schema, and what does not work together."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vllm_proxy.common.settings.conflicts import conflicts
from vllm_proxy.common.settings.schema import Settings
from vllm_proxy.common.settings.values import fault_of


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line per fault, each naming its key."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    settings: Settings
    path: Path
    root: Path
    #: Things that were put right; each is worth a line in the log.
    warnings: tuple[str, ...] = ()
    #: `key=value`s that won over the file, and will again when it is read anew.
    overrides: tuple[str, ...] = ()


def find_root(config_path: Path) -> Path:
    """The project root of a configuration file: beside its `config/` folder, else its own folder."""
    folder = config_path.resolve().parent
    return folder.parent if folder.name == "config" else folder


def load_settings(path: Path, overrides: Sequence[str] = ()) -> LoadedSettings:
    """Reads and checks a configuration file. A missing file is an error, an empty one means all defaults.

    Each override is `dotted.key=value` (the value in YAML) and wins over the file. Raises ConfigError.
    """
    loaded, faults = read_settings(path, overrides)
    if faults:
        raise ConfigError("\n".join(faults))
    return loaded


def read_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[LoadedSettings, list[str]]:
    """The same for who can do with settings that do not work together: what does not is the second value. Raises
    ConfigError for a file whose single values are wrong."""
    path = path.resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 (byte {e.start})") from None
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as e:
        # PyYAML lets Python's own errors through for values such as the date 2024-13-45.
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of settings")
    # `vllm:` with nothing below it means the defaults, not null.
    data = {k: v for k, v in data.items() if not (v is None and k in _SECTIONS)}
    for override in overrides:
        _override(data, override)
    try:
        settings = Settings.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{path}: {fault_of(error, Settings)}" for error in e.errors())) from None
    root = find_root(path)
    faults = [f"{path}: {fault}" for fault in conflicts(settings, root)]
    return LoadedSettings(settings, path, root, tuple(_warnings(data)), tuple(overrides)), faults


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *parents, last = key.split(".")
    for parent in parents:
        child = data.get(parent)
        data[parent] = data = dict(child) if isinstance(child, dict) else {}
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        separator = ""
    if not separator:
        raise ConfigError(f"--set {override}: must be key=value, the value in YAML")


def enter_root(loaded: LoadedSettings) -> None:
    """Makes the project root the working directory, which relative paths in the settings are meant for."""
    os.chdir(loaded.root)


_SECTIONS = frozenset(
    name for name, field in Settings.model_fields.items() if isinstance(field.default, (BaseModel, dict, list))
)


def _warnings(data: dict[str, Any]) -> list[str]:
    lora = (data.get("vllm") or {}).get("lora") or {}
    loras, cpu = lora.get("max_loras", 4), lora.get("max_cpu_loras")
    if isinstance(cpu, int) and isinstance(loras, int) and cpu < loras:
        return [f"vllm.lora.max_cpu_loras: {cpu} is below max_loras and was raised to {loras}"]
    return []


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key that stands twice, since the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
