"""An embedding model and a reranker, each on a real vLLM, behind one edge."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from tests.engine.columns import MODEL, VLLM_ENVIRONMENT
from tests.engine.running import require_model
from tests.support.cluster import ALICE, Cluster
from tests.support.http_client import Client
from tests.support.process import ENGINE_PYTHON

MAKE_DEADLINE_S = 120
DOCUMENTS = ["Boil it in water.", "The capital of France is Paris.", "Arr."]


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_model(ENGINE_PYTHON)
    folder = tmp_path_factory.mktemp("pooling")
    script = Path(__file__).with_name("make_pooling_models.py")
    subprocess.run(
        [str(ENGINE_PYTHON), str(script), str(MODEL), str(folder)],
        check=True,
        timeout=MAKE_DEADLINE_S,
        capture_output=True,
    )

    def host(name: str, flags: str) -> dict[str, object]:
        command = f"python -m vllm.entrypoints.openai.api_server --model {folder / name} --served-model-name {name}"
        return {
            "engine": "vllm",
            "port": 0,
            "start_cmd": f"{command} --dtype bfloat16 --enforce-eager --max-model-len 256 --runner pooling {flags}",
        }

    config = {
        "engine_hosts": {"embedder": host("embedder", "--convert embed"), "reranker": host("reranker", "")},
        "vllm": {
            "extra_env": VLLM_ENVIRONMENT,
            "lora": {"enabled": False},
        },
    }
    with Cluster(config, hosts=("embedder", "reranker")) as cluster:
        yield cluster


@pytest.fixture
async def client(pooling: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{pooling.url}/v1", api_key=ALICE.key, max_retries=0) as client:
        yield client


async def test_embeddings(pooling: Cluster, client: openai.AsyncOpenAI) -> None:
    before = await pooling.settled_usage()
    answer = await client.embeddings.create(model="embedder", input=["One", "Two", "One"])
    vectors = [row.embedding for row in answer.data]
    assert [len(vector) for vector in vectors] == [128, 128, 128]
    assert vectors[0] == pytest.approx(vectors[2], abs=0.02) and vectors[0] != pytest.approx(vectors[1], abs=0.02)
    tokens = await client.embeddings.create(model="embedder", input=[504, 3575, 282, 4649])
    assert tokens.usage.prompt_tokens == 4
    used = await pooling.settled_usage() - before
    assert used.prompt_tokens == answer.usage.prompt_tokens + 4
    assert used.completion_tokens == 0


async def test_reranking(pooling: Cluster) -> None:
    before = await pooling.settled_usage()
    alice = Client(pooling.port, ALICE.key)
    body = {"model": "reranker", "query": "How do I boil an egg?", "documents": DOCUMENTS}
    charged = 0
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        answer = await alice.request("POST", path, body)
        assert answer.status == 200, answer.body
        results = answer.json()["results"]
        assert sorted(row["index"] for row in results) == [0, 1, 2]
        scores = [row["relevance_score"] for row in results]
        assert scores == sorted(scores, reverse=True)
        charged += answer.json()["usage"]["total_tokens"]
    pair = {"model": "reranker", "text_1": "How?", "text_2": DOCUMENTS}
    answer = await alice.request("POST", "/score", pair)
    assert answer.status == 200 and len(answer.json()["data"]) == 3
    charged += answer.json()["usage"]["prompt_tokens"]
    used = await pooling.settled_usage() - before
    assert (used.prompt_tokens, used.completion_tokens) == (charged, 0)


async def test_each_model_answers_its_own_kind_only(pooling: Cluster) -> None:
    alice = Client(pooling.port, ALICE.key)
    answer = await alice.request("POST", "/rerank", {"model": "nobody", "query": "x", "documents": ["y"]})
    assert answer.status == 404
    answer = await alice.request("POST", "/v1/embeddings", {"model": "reranker", "input": "x"})
    assert answer.status in (400, 404)
    answer = await alice.request("POST", "/v1/chat/completions", {"model": "embedder", "messages": []})
    assert answer.status == 404
