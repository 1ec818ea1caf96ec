"""Loading, refusing, replacing and unloading adapters on the real engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.columns import BASE
from tests.engine.running import EngineClient, voice
from tests.support.adapter_files import write_adapter
from tests.support.wait import eventually


@pytest.mark.row("adapters from the resolver's folder")
async def test_the_resolver_loads_at_the_first_request(client: EngineClient) -> None:
    folder = client.engine.root / "lora_cache/dropped"
    assert (await client.http.post("/v1/chat/completions", json=client.chat_body("dropped"))).status_code == 404
    shutil.copytree(client.engine.root / "adapters/pirate", folder)
    try:

        async def known() -> bool:
            return await _status(client, "dropped") == 200

        await eventually(known, "the dropped adapter")
        # Asked for by many at once, it is loaded once.
        answers = await asyncio.gather(*(client.chat("dropped") for _ in range(8)))
        assert {voice(answer) for answer in answers} == {"pirate"}
        assert len((await client.state())["engine_holds"]) == 1
        # What somebody unloads stays away until it is put there anew.
        assert (await client.unload_adapter("dropped")).status_code == 200
        assert (await client.http.post("/v1/chat/completions", json=client.chat_body("dropped"))).status_code == 404
    finally:
        shutil.rmtree(folder)


async def _status(client: EngineClient, model: str) -> int:
    return (await client.http.post("/v1/chat/completions", json=client.chat_body(model))).status_code


def _bad_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _rank(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 100}))


def _truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _modules(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"q_proj", b"x_proj"))


def _shapes(folder: Path) -> None:
    shutil.rmtree(folder)
    write_adapter(folder, width=64)


def _link_out(folder: Path) -> None:
    outside = folder.parents[1] / "outside.safetensors"
    (folder / "adapter_model.safetensors").rename(outside)
    (folder / "adapter_model.safetensors").symlink_to(outside)


@pytest.mark.row("bad adapters are refused with their reason")
@pytest.mark.one_host
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_bad_json, "not valid JSON"),
        (_pickled, "only safetensors"),
        (_rank, "rank 100 is above the maximum"),
        (_truncated, "truncated or corrupt"),
        (_modules, "no module x_proj"),
        (_shapes, "for another base model"),
        (_link_out, "outside the allowed roots"),
    ],
)
async def test_a_bad_adapter_is_refused_with_its_reason(
    client: EngineClient, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = client.engine.root / "adapters/bad"
    shutil.copytree(client.engine.root / "adapters/pirate", folder)
    try:
        spoil(folder)
        answer = await client.load_adapter("bad", "adapters/bad")
    finally:
        shutil.rmtree(folder)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    state = await client.state()
    assert (state["adapters"], state["engine_holds"]) == ([], [])


@pytest.mark.row("bad adapters are refused with their reason")
@pytest.mark.one_host
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("../x", "adapters/pirate"),
        ("a/b", "adapters/pirate"),
        (".hidden", "adapters/pirate"),
        (BASE, "adapters/pirate"),
        ("x", "adapters/../adapters/pirate"),
        ("x", "/etc"),
        ("x", "adapters/none"),
        ("x", "some-org/some-repo"),
    ],
)
async def test_a_bad_name_or_place_is_refused(client: EngineClient, name: str, path: str) -> None:
    answer = await client.load_adapter(name, path)
    assert answer.status_code == 400, answer.text
    assert (await client.state())["engine_holds"] == []


@pytest.mark.row("bad adapters are refused with their reason")
async def test_a_bad_folder_of_the_resolver_is_told(client: EngineClient) -> None:
    folder = write_adapter(client.engine.root / "lora_cache/wrong", width=64)
    try:
        answer = await client.http.post("/v1/chat/completions", json=client.chat_body("wrong"))
    finally:
        shutil.rmtree(folder)
    assert answer.status_code == 400
    assert "another base model" in answer.json()["error"]["message"]
    assert (await client.state())["engine_holds"] == []


@pytest.mark.row("load and unload at the engine's own port")
async def test_native_answers_have_vllms_words(client: EngineClient) -> None:
    answer = await client.load_adapter("pirate", "adapters/pirate")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'pirate' added successfully.")
    answer = await client.load_adapter("pirate", "adapters/pirate")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "InvalidUserInput"
    listed = (await client.http.get("/v1/models")).json()["data"]
    assert [(row["id"], row["parent"]) for row in listed] == [(BASE, None), ("pirate", BASE)]
    answer = await client.unload_adapter("pirate")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'pirate' removed successfully.")
    answer = await client.unload_adapter("pirate")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")
    answer = await client.http.post("/v1/chat/completions", json=client.chat_body("pirate"))
    assert answer.status_code == 404
    assert "`pirate` does not exist" in answer.json()["error"]["message"]


@pytest.mark.row("load and unload under traffic")
async def test_unloading_waits_for_running_requests(client: EngineClient) -> None:
    await client.load_adapter("pirate", "adapters/pirate")
    body = client.chat_body("pirate", max_tokens=160, ignore_eos=True, n=2, temperature=1)
    running = [asyncio.create_task(client.metered("/v1/chat/completions", body)) for _ in range(4)]

    async def all_running() -> bool:
        return (await client.load())["running"] == 8

    async def forgotten() -> bool:
        return await _status(client, "pirate") == 404

    await eventually(all_running, "eight sequences running", 30)
    unloading = asyncio.create_task(client.unload_adapter("pirate"))
    await eventually(forgotten, "new requests refused")
    assert not unloading.done()
    for _, usage in await asyncio.gather(*running):
        assert usage["completion_tokens"] == 320
    assert (await unloading).status_code == 200
    assert (await client.state())["engine_holds"] == []


@pytest.mark.row("load and unload under traffic")
async def test_replacing_weights_under_traffic_never_mixes_them(client: EngineClient) -> None:
    await client.load_adapter("who", "adapters/pirate")
    [before] = (await client.state())["engine_holds"]
    asked = [asyncio.create_task(client.chat("who")) for _ in range(12)]
    answer = await client.load_adapter("who", "adapters/robot", load_inplace=True)
    assert answer.status_code == 200, answer.text
    assert {voice(text) for text in await asyncio.gather(*asked)} <= {"pirate", "robot"}
    assert voice(await client.chat("who")) == "robot"

    async def old_gone() -> bool:
        # An engine tells ids, which are never used twice, or only names.
        holds = (await client.state())["engine_holds"]
        return len(holds) == 1 and holds != ([before] if before != "who" else [])

    await eventually(old_gone, "the old weights gone", 30)


@pytest.mark.row("an adapter whose files vanished")
async def test_an_adapter_whose_files_vanished_does_not_kill_the_engine(voices: EngineClient) -> None:
    # max_cpu_loras 3: with five loaded, vLLM must read some again.
    folder = voices.engine.root / "adapters/vanishing"
    shutil.copytree(voices.engine.root / "adapters/pirate", folder)
    assert (await voices.load_adapter("vanishing", folder)).status_code == 200
    shutil.rmtree(folder)
    for number in range(3):
        assert (await voices.load_adapter(f"copy-{number}", "adapters/robot")).status_code == 200
    answer = await voices.http.post("/v1/chat/completions", json=voices.chat_body("vanishing"))
    if voices.engine.column.keeps_adapters:
        assert answer.status_code == 200
        assert voice(answer.json()["choices"][0]["message"]["content"]) == "pirate"
    else:
        assert answer.status_code == 404
        assert "could not be read again" in answer.json()["error"]["message"]
    assert voice(await voices.chat(BASE)) == "base"
    assert voice(await voices.chat("pirate")) == "pirate"
