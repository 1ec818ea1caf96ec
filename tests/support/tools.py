"""Programs of others that tests run: the machine's own or Debian's, else the test is skipped and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.external_tools import ToolMissing, find_or_fetch


def tool(name: str) -> Path:
    try:
        return find_or_fetch(name)
    except ToolMissing as e:
        pytest.skip(f"NOT TESTED: {e}")
