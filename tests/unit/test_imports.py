"""The shape of the code: no service knows another, and engine packages stay inside their adapters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "services"
PACKAGE = "vllm_proxy"
SERVICES = {"auth", "router", "edge", "engine_host"}
#: What each part of the package may import of the package.
MAY_IMPORT = {service: {service, "common", "api"} for service in SERVICES} | {
    "cli": {"cli", "common", "api"},
    "common": {"common", "api"},
    "api": {"api"},
}
ENGINE_PACKAGES = {"vllm", "sglang", "torch", "transformers"}
ENGINE_ADAPTERS = "vllm_proxy.engine_host.engines"


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def imports(module: str, source: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of a module by absolute name, also those inside functions and `if TYPE_CHECKING`.

    `from a import b` counts as `a.b`, since b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                yield Import(module, f"{base}.{alias.name}", node.lineno)


def crosses_services(found: Import) -> bool:
    importer, imported = found.importer.split("."), found.imported.split(".")
    if len(importer) < 2 or imported[0] != PACKAGE or len(imported) < 2:
        return False
    return imported[1] not in MAY_IMPORT.get(importer[1], set())


def leaks_engine(found: Import) -> bool:
    inside = found.importer == ENGINE_ADAPTERS or found.importer.startswith(ENGINE_ADAPTERS + ".")
    return found.imported.split(".")[0] in ENGINE_PACKAGES and not inside


def _all_imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(ROOT.rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        found.extend(imports(module, path.read_text(encoding="utf-8"), is_package=is_package))
    return found


ALL_IMPORTS = _all_imports()


def test_every_part_of_the_package_is_known_here() -> None:
    parts = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts == SERVICES | {"cli", "common", "api"}


def test_no_service_imports_another() -> None:
    assert [str(found) for found in ALL_IMPORTS if crosses_services(found)] == []


def test_engine_packages_are_imported_in_their_adapters_only() -> None:
    assert [str(found) for found in ALL_IMPORTS if leaks_engine(found)] == []


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("vllm_proxy.edge.app", "from vllm_proxy.auth import store", False),
        ("vllm_proxy.edge.app", "import vllm_proxy.auth.store", False),
        ("vllm_proxy.edge.app", "def f():\n    from vllm_proxy import router", False),
        ("vllm_proxy.edge.app", "from ..auth.store import Store", False),
        ("vllm_proxy.edge", "from ..auth import store", True),
        ("vllm_proxy.edge.routes.chat", "from ...auth import store", False),
        ("vllm_proxy.common.errors", "from vllm_proxy.edge import app", False),
        ("vllm_proxy.cli.keys", "from vllm_proxy.auth import keys", False),
        ("vllm_proxy.auth.keys", "from vllm_proxy.cli import output", False),
    ],
)
def test_the_check_sees_a_service_that_imports_another(module: str, source: str, is_package: bool) -> None:
    assert any(crosses_services(found) for found in imports(module, source, is_package=is_package))


@pytest.mark.parametrize("source", ["import vllm", "from torch.nn import Linear", "def f():\n    import sglang.srt"])
def test_the_check_sees_an_engine_package_outside_its_adapter(source: str) -> None:
    assert all(
        leaks_engine(found) for found in imports("vllm_proxy.engine_host.lora.registry", source, is_package=False)
    )
    assert not any(leaks_engine(f) for f in imports("vllm_proxy.engine_host.engines.any.app", source, is_package=False))


def test_the_check_allows_a_services_own_modules() -> None:
    sources = ("from . import config", "from .config import Section", "from ..common import errors")
    for source in sources:
        assert not any(crosses_services(found) for found in imports("vllm_proxy.edge.app", source, is_package=False))


def test_tracing_that_is_off_imports_nothing() -> None:
    services = ", ".join(f"vllm_proxy.{name}" for name in ("edge.app", "auth.server", "router.server"))
    source = f"import sys, {services}, vllm_proxy.engine_host.server; print('opentelemetry.sdk' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "False"
