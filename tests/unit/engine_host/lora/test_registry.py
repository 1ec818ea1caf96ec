from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.support.adapter_files import write_adapter
from tests.support.wait import eventually

from vllm_proxy.common.errors import (
    AdapterExists,
    AdapterNotFound,
    InvalidAdapter,
    PermissionDenied,
    RequestTimeout,
)
from vllm_proxy.common.settings import LoraPreload
from vllm_proxy.engine_host.engines.base import AdapterLimits, ModelCard
from vllm_proxy.engine_host.lora.registry import (
    DECLARED,
    NATIVE,
    PRELOAD,
    RESOLVED,
    UNSPECIFIED,
    AdapterPolicy,
    AdapterRegistry,
)


class FakeEngine:
    """Loads instantly, unless `gate` is closed."""

    supports_lora = True

    def __init__(self) -> None:
        self.loads: list[tuple[str, Path]] = []
        self.removed: list[str] = []
        self.refuse: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def base_models(self) -> list[str]:
        return ["base", "alias"]

    def adapter_limits(self) -> AdapterLimits:
        return AdapterLimits(max_rank=8)

    async def load_adapter(self, name: str, path: Path) -> None:
        await self.gate.wait()
        if self.refuse:
            raise self.refuse
        self.loads.append((name, path))

    async def remove_adapter(self, name: str) -> None:
        await self.gate.wait()
        self.removed.append(name)


class Setup:
    def __init__(self, root: Path, **policy: Any) -> None:
        self.root = root
        self.engine = FakeEngine()
        self.changes = 0
        self.cache = root / "cache"
        self.cache.mkdir(exist_ok=True)
        values: dict[str, Any] = {"allowed_roots": (root / "adapters",), "cache_dir": self.cache, **policy}
        engine: Any = self.engine
        self.registry = AdapterRegistry(engine, AdapterPolicy(**values), self._changed)
        self.a = write_adapter(root / "adapters/a")
        self.b = write_adapter(root / "adapters/b", fill=1.0)

    def _changed(self) -> None:
        self.changes += 1

    async def load(self, name: str = "a", folder: str = "", base: str = "", **more: Any) -> Any:
        path = self.root / "adapters" / (folder or name)
        return await self.registry.load(name, str(path), base, **{"origin": DECLARED, **more})

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.registry.adapters()]


@pytest_asyncio.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    yield made
    await made.registry.close()


async def test_load_and_unload(setup: Setup) -> None:
    loaded = await setup.load("a")
    assert (loaded.name, loaded.path, loaded.base, loaded.origin) == ("a", setup.a, "base", DECLARED)
    assert len(loaded.digest) == 64
    assert setup.engine.loads == [("a", setup.a)]
    assert (setup.names, setup.changes) == (["a"], 1)
    assert await setup.registry.unload("a") == loaded
    assert (setup.names, setup.engine.removed) == ([], ["a"])
    with pytest.raises(AdapterNotFound):
        await setup.registry.unload("a")


async def test_a_name_is_taken_unless_it_is_to_be_replaced(setup: Setup) -> None:
    first = await setup.load("a")
    with pytest.raises(AdapterExists):
        await setup.load("a", "b")
    second = await setup.load("a", "b", replace=True)
    assert second.digest != first.digest
    assert setup.registry.adapters() == [second]


async def test_bases(setup: Setup) -> None:
    assert (await setup.load("a", base="alias")).base == "alias"
    with pytest.raises(InvalidAdapter, match="not served here"):
        await setup.load("b", base="other")
    with pytest.raises(InvalidAdapter, match="base model"):
        await setup.load("base", "b")


async def test_a_failed_load_leaves_nothing(setup: Setup) -> None:
    setup.engine.refuse = InvalidAdapter("no")
    with pytest.raises(InvalidAdapter):
        await setup.load("a")
    assert (setup.names, setup.changes) == ([], 0)
    setup.engine.refuse = None
    await setup.load("a")


async def test_the_same_load_twice_at_once_happens_once(setup: Setup) -> None:
    setup.engine.gate.clear()
    both = [asyncio.create_task(setup.load("a")) for _ in range(2)]
    await _settled(lambda: True)
    setup.engine.gate.set()
    first, second = await asyncio.gather(*both)
    assert first is second
    assert len(setup.engine.loads) == 1


async def test_a_caller_that_goes_away_does_not_take_the_load_with_it(setup: Setup) -> None:
    setup.engine.gate.clear()
    leaving = asyncio.create_task(setup.load("a"))
    staying = asyncio.create_task(setup.load("a"))
    await _settled(lambda: True)
    leaving.cancel()
    setup.engine.gate.set()
    assert (await staying).name == "a"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_what_is_done_to_one_name_is_done_in_turn(setup: Setup) -> None:
    await setup.load("a")
    setup.engine.gate.clear()
    unloading = asyncio.create_task(setup.registry.unload("a"))
    await _settled(lambda: setup.names == [])
    loading = asyncio.create_task(setup.load("a", "b"))
    await _settled(lambda: True)
    assert len(setup.engine.loads) == 1
    setup.engine.gate.set()
    await unloading
    assert (await loading).path == setup.b
    assert setup.engine.removed == ["a"]


async def test_a_slow_load_is_given_up(tmp_path: Path) -> None:
    setup = Setup(tmp_path, load_timeout_s=0.05)
    setup.engine.gate.clear()
    with pytest.raises(RequestTimeout):
        await setup.load("a")
    assert setup.names == []


async def test_updates_can_be_forbidden(tmp_path: Path) -> None:
    setup = Setup(tmp_path, allow_runtime_updates=False)
    write_adapter(setup.cache / "dropped")
    for attempt in (setup.load("a"), setup.registry.unload("a")):
        with pytest.raises(PermissionDenied):
            await attempt
    assert not await setup.registry.resolve("dropped")


async def test_preload_goes_on_after_a_bad_one(tmp_path: Path) -> None:
    elsewhere = write_adapter(tmp_path / "elsewhere")
    preload = (
        LoraPreload(name="none", path=tmp_path / "none"),
        LoraPreload(name="good", path=elsewhere, base_model_name="alias"),
    )
    setup = Setup(tmp_path, preload=preload, allow_runtime_updates=False)
    await setup.registry.preload()
    [good] = setup.registry.adapters()
    assert (good.name, good.origin, good.base) == ("good", PRELOAD, "alias")


class TestChangedPolicy:
    """What a changed configuration names is loaded, what it names no more is unloaded."""

    def policy(self, setup: Setup, **folders: str) -> AdapterPolicy:
        preload = tuple(
            LoraPreload(name=name, path=setup.root / "adapters" / folder) for name, folder in folders.items()
        )
        # Runtime updates are for others: the configuration may always change what it names.
        return AdapterPolicy(preload=preload, allow_runtime_updates=False)

    async def test_adapters_come_change_and_go(self, setup: Setup) -> None:
        await setup.registry.preload()
        assert await setup.registry.use_policy(self.policy(setup, one="a", two="b")) == []
        assert setup.names == ["one", "two"]
        first = setup.registry.adapters()[0]
        assert await setup.registry.use_policy(self.policy(setup, one="b")) == []
        assert (setup.names, setup.engine.removed) == (["one"], ["two"])
        assert setup.registry.adapters()[0].digest != first.digest
        loads = len(setup.engine.loads)
        await setup.registry.use_policy(self.policy(setup, one="b"))
        assert len(setup.engine.loads) == loads

    async def test_one_that_fails_is_told_and_leaves_what_was(self, setup: Setup) -> None:
        await setup.registry.preload()
        await setup.registry.use_policy(self.policy(setup, one="a"))
        (failure,) = await setup.registry.use_policy(self.policy(setup, one="nowhere", two="b"))
        assert failure.startswith("one: ")
        assert [(a.name, a.path.name) for a in setup.registry.adapters()] == [("one", "a"), ("two", "b")]

    async def test_one_that_somebody_else_loaded_stays(self, setup: Setup) -> None:
        await setup.registry.preload()
        await setup.load("a")
        await setup.registry.use_policy(self.policy(setup, a="b"))
        await setup.registry.use_policy(self.policy(setup))
        assert [(a.name, a.path.name) for a in setup.registry.adapters()] == [("a", "a")]

    async def test_before_the_engine_runs_it_only_takes_note(self, setup: Setup) -> None:
        await setup.registry.use_policy(self.policy(setup, one="a"))
        assert setup.names == []
        await setup.registry.preload()
        assert setup.names == ["one"]


async def test_a_preloaded_folder_is_allowed_its_neighbours_are_not(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "elsewhere/one")
    neighbour = write_adapter(tmp_path / "elsewhere/two")
    setup = Setup(tmp_path, preload=(LoraPreload(name="one", path=folder),))
    await setup.registry.load("again", str(folder), "", origin=DECLARED)
    with pytest.raises(InvalidAdapter, match="allowed root"):
        await setup.registry.load("two", str(neighbour), "", origin=DECLARED)


async def test_native_unloads_are_told_once(setup: Setup) -> None:
    await setup.load("a", origin=NATIVE)
    await setup.load("b")
    await setup.registry.unload("a", native=True)
    await setup.registry.unload("b")
    assert setup.registry.take_withdrawn() == ["a"]
    assert setup.registry.take_withdrawn() == []


async def test_the_resolver_loads_what_lies_in_its_folder(setup: Setup) -> None:
    write_adapter(setup.cache / "dropped")
    found = await asyncio.gather(*(setup.registry.resolve("dropped") for _ in range(5)))
    assert all(found)
    assert len(setup.engine.loads) == 1
    assert setup.registry.adapters()[0].origin == RESOLVED
    for name in ("../adapters/a", "none", "", "."):
        assert not await setup.registry.resolve(name)


async def test_a_name_just_missed_is_not_looked_for_again_at_once(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("vllm_proxy.engine_host.lora.registry.time.monotonic", lambda: now)
    assert not await setup.registry.resolve("late")
    write_adapter(setup.cache / "late")
    assert not await setup.registry.resolve("late")
    now += 1.1
    assert await setup.registry.resolve("late")


async def test_a_bad_folder_of_the_resolver_says_so(setup: Setup) -> None:
    write_adapter(setup.cache / "big", rank=100)
    with pytest.raises(InvalidAdapter, match="above the maximum"):
        await setup.registry.resolve("big")
    assert setup.names == []


async def test_what_was_unloaded_stays_away_until_it_is_put_there_anew(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("vllm_proxy.engine_host.lora.registry.time.monotonic", lambda: now)
    write_adapter(setup.cache / "dropped")
    assert await setup.registry.resolve("dropped")
    await setup.registry.unload("dropped")
    assert not await setup.registry.resolve("dropped")
    now += 10
    assert not await setup.registry.resolve("dropped")
    shutil.rmtree(setup.cache / "dropped")
    write_adapter(setup.cache / "dropped", fill=2.0)
    now += 10
    assert await setup.registry.resolve("dropped")


async def _settled(condition: Any) -> None:
    """Lets other tasks run until `condition`, at least far enough for file threads to be done."""
    async with asyncio.timeout(5):
        for _ in range(20):
            await asyncio.sleep(0.001)
        while not condition():  # noqa: ASYNC110 (nothing to wait on)
            await asyncio.sleep(0.001)


def card(setup: Setup, name: str, folder: str = "") -> ModelCard:
    return ModelCard(name, b"{}", base="base", root=str(setup.root / (folder or f"adapters/{name}")))


async def _settle(setup: Setup, names: list[str]) -> None:
    await eventually(lambda: setup.names == names, f"{names} known")


class TestObserved:
    """Engines that others reach too."""

    async def test_what_is_loaded_later_is_native_and_can_be_loaded_again(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path)
        setup.registry.observe([])
        setup.registry.observe([card(setup, "a")])
        await _settle(setup, ["a"])
        [adapter] = setup.registry.adapters()
        assert (adapter.origin, adapter.path, adapter.base) == (NATIVE, setup.a, "base") and adapter.digest
        assert setup.engine.loads == [] and setup.changes == 1

    async def test_what_was_there_before_is_nobodys_to_load_again(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path)
        setup.registry.observe([card(setup, "a")])
        await _settle(setup, ["a"])
        assert setup.registry.adapters()[0].origin == UNSPECIFIED

    async def test_what_lies_elsewhere_is_routed_but_not_loaded_again(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path)
        setup.registry.observe([])
        setup.registry.observe([card(setup, "x", "elsewhere/x")])
        await _settle(setup, ["x"])
        [adapter] = setup.registry.adapters()
        assert (adapter.origin, adapter.digest) == (UNSPECIFIED, "")

    async def test_what_vanishes_was_withdrawn_unless_the_engine_is_new(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path)
        setup.registry.observe([])
        await setup.load("a")
        await setup.load("b")
        setup.registry.observe([card(setup, "b")])
        assert (setup.names, setup.registry.take_withdrawn()) == (["b"], ["a"])
        setup.registry.engine_is_new()
        setup.registry.observe([])
        assert (setup.names, setup.registry.take_withdrawn()) == ([], [])

    async def test_what_the_host_is_changing_is_left_alone(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path)
        setup.registry.observe([])
        setup.engine.gate.clear()
        loading = asyncio.create_task(setup.load("a"))
        await asyncio.sleep(0)
        setup.registry.observe([card(setup, "a")])
        setup.engine.gate.set()
        assert (await loading).origin == DECLARED and setup.names == ["a"]

    async def test_a_preloaded_one_that_is_there_is_not_loaded_again(self, tmp_path: Path) -> None:
        preload = (LoraPreload(name="a", path=tmp_path / "adapters/a"),)
        setup = Setup(tmp_path, preload=preload)
        setup.registry.observe([card(setup, "a")])
        await setup.registry.preload()
        await _settle(setup, ["a"])
        assert setup.registry.adapters()[0].origin == PRELOAD and setup.engine.loads == []

    async def test_what_was_unloaded_is_withheld(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path)
        write_adapter(setup.cache / "c")
        assert await setup.registry.resolve("c") and not setup.registry.withholds("c")
        await setup.registry.unload("c")
        assert setup.registry.withholds("c")
