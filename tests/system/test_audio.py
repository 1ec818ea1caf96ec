"""Sound in, text out: a Whisper with random weights on a real vLLM, through the edge and at the engine's own port."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.engine.columns import VLLM_ENVIRONMENT
from tests.engine.running import require_model
from tests.support.cluster import ALICE, Cluster, free_port
from tests.support.process import ENGINE_PYTHON

MAKE_DEADLINE_S = 120
RATE_HZ = 16_000
NAME = "whisper"
#: The encoder makes 1500 positions of any sound; all of them belong into one batch.
FLAGS = "--dtype bfloat16 --enforce-eager --max-model-len 64 --max-num-seqs 4 --max-num-batched-tokens 2048"


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_model(ENGINE_PYTHON)
    folder = tmp_path_factory.mktemp("audio")
    script = Path(__file__).with_name("make_audio_model.py")
    subprocess.run(
        [str(ENGINE_PYTHON), str(script), str(folder)], check=True, timeout=MAKE_DEADLINE_S, capture_output=True
    )
    command = f"python -m vllm.entrypoints.openai.api_server --model {folder} --served-model-name {NAME} {FLAGS}"
    config = {
        "engine_hosts": {NAME: {"engine": "vllm", "port": free_port(), "start_cmd": command}},
        "vllm": {"extra_env": VLLM_ENVIRONMENT, "lora": {"enabled": False}},
    }
    with Cluster(config, hosts=(NAME,)) as cluster:
        yield cluster


def tone(seconds: float = 1.0) -> bytes:
    """A WAV file of a single note."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE_HZ)
        values = (int(8000 * math.sin(2 * math.pi * 440 * i / RATE_HZ)) for i in range(int(seconds * RATE_HZ)))
        sound.writeframes(b"".join(struct.pack("<h", value) for value in values))
    return file.getvalue()


def both(cluster: Cluster) -> tuple[openai.OpenAI, openai.OpenAI]:
    """A client of the engine's own port, and one of the edge."""
    port = cluster.config["engine_hosts"][NAME]["port"]
    own = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    return own, openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=ALICE.key, max_retries=0, timeout=60)


ASK: dict[str, Any] = {"model": NAME, "temperature": 0, "language": "en", "file": ("a.wav", tone())}


@pytest.mark.parametrize("form", [{}, {"response_format": "text"}, {"response_format": "verbose_json"}], ids=str)
async def test_transcriptions(hearing: Cluster, form: dict[str, Any]) -> None:
    before = await hearing.settled_usage()
    own, edge = both(hearing)
    with own, edge:
        expected, got = (client.audio.transcriptions.with_raw_response.create(**ASK, **form) for client in (own, edge))
    assert got.status_code == expected.status_code == 200
    assert got.headers["content-type"] == expected.headers["content-type"]
    assert got.text == expected.text != ""
    used = await hearing.settled_usage() - before
    assert used.requests == 1 and used.completion_tokens > 0


async def test_a_transcription_streamed(hearing: Cluster) -> None:
    own, edge = both(hearing)
    with own, edge:
        expected, got = (
            [
                event.model_dump(exclude={"id", "created"})
                for event in client.audio.transcriptions.create(**ASK, stream=True)
            ]
            for client in (own, edge)
        )
    assert got == expected and len(got) > 1


# OpenAI's client calls the method outdated.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_translations(hearing: Cluster) -> None:
    own, edge = both(hearing)
    with own, edge:
        expected, got = (
            client.audio.translations.create(**{k: v for k, v in ASK.items() if k != "language"}).text
            for client in (own, edge)
        )
    assert got == expected != ""


async def test_what_is_no_sound(hearing: Cluster) -> None:
    own, edge = both(hearing)
    errors = []
    for client in (own, edge):
        with client, pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(**{**ASK, "file": ("a.wav", b"no sound")})
        errors.append(caught.value.body)
    assert errors[0] == errors[1]
