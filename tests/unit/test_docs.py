"""What the documentation names is there: pages, sections, make targets, scripts, routes, settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from vllm_proxy.common.engine_routes import EDGE_ROUTES
from vllm_proxy.common.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OPERATOR_PAGES = [page for page in PAGES if page.parent.name != "adr"]
ENGINE_PORTS = ("8002", "8003")
LORA_ROUTES = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def commands(page: Path) -> str:
    """The shell of a page: its bash blocks, and what stands in backticks."""
    text = page.read_text()
    blocks = [body for language, body in _BLOCK.findall(text) if language in ("bash", "")]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))])


def own_paths() -> list[re.Pattern[str]]:
    """The edge's own routes, by the sources of their routers."""
    found: set[str] = set()
    for source in (ROOT / "services/vllm_proxy/edge/routes").glob("*.py"):
        text = source.read_text()
        prefix = "".join(re.findall(r'APIRouter\(\s*prefix="([^"]+)"', text)[:1])
        paths = re.findall(r'\.(?:get|post|put|patch|delete)\(\s*"([^"]*)"', text)
        found |= {prefix + path for path in paths} | set(paths)
    return [re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)) for path in found]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=name_of)
def test_make_targets_and_scripts_exist(page: Path) -> None:
    text = commands(page)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^(?:\s*)make ([a-z][\w-]*)", text, re.MULTILINE):
        pattern = re.sub(r"^(start|stop|restart)-[\w-]+$", r"\1-%", target)
        assert re.search(rf"^{re.escape(pattern)}:", makefile, re.MULTILINE), f"make {target}"
    for script in re.findall(r"(?<![\w/.])scripts/[\w./-]*\w", text):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"-m (scripts\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for path in re.findall(r"(?<![\w/.])config/[\w./@-]*\w\.(?:conf|json|service|txt|yaml|yml)", text):
        generated = ("config/api_keys.json", "config/tls/")
        assert path.startswith(generated) or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=name_of)
def test_urls_are_served(page: Path) -> None:
    ours = own_paths()
    for port, path in re.findall(r"http://localhost:(\d+)(/[\w/.$-]*)", commands(page)):
        served = bool(EDGE_ROUTES.methods(path)) or any(known.fullmatch(path) for known in ours)
        engines_own = port in ENGINE_PORTS and path in ("/metrics", *LORA_ROUTES)
        assert path == "/v1" or served or engines_own, path


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=name_of)
def test_settings_in_examples_are_settings(page: Path) -> None:
    for language, body in _BLOCK.findall(page.read_text()):
        if re.match(r"# [\w-]+\.yaml\n", body):  # another program's file
            continue
        if language == "yaml" and isinstance(data := yaml.safe_load(body), dict):
            assert data.keys() - Settings.model_fields.keys() == set()


def test_the_chinese_pages_have_the_english_pages_commands() -> None:
    """Those are run by a test."""
    english = {
        line for name in ("QUICKSTART.md", "LORA_USAGE_EXAMPLES.md") for line in shell_lines(ROOT / "docs" / name)
    }
    assert set(shell_lines(ROOT / "docs" / "zh" / "QUICKSTART.md")) <= english
    assert set(shell_lines(ROOT / "README.zh-CN.md")) <= set(shell_lines(ROOT / "README.md"))


def shell_lines(page: Path) -> list[str]:
    return [
        line for language, body in _BLOCK.findall(page.read_text()) if language == "bash" for line in body.splitlines()
    ]
