"""What the router's file keeps."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.router.declaration_store import Declaration, DeclarationStore, StoredState

DECLARE_AND_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from vllm_proxy.router.declaration_store import Declaration, DeclarationStore

async def main():
    store = DeclarationStore(Path(sys.argv[1]))
    await store.open()
    await store.declare(Declaration("pirate", "/a", "base", "", "d", 1))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def declaration(name: str = "pirate", host: str = "", *, excepted: frozenset[str] = frozenset()) -> Declaration:
    return Declaration(name, "/a", "base", host, "d", 1, excepted)


async def stored(path: Path) -> StoredState:
    store = DeclarationStore(path)
    try:
        return await store.open()
    finally:
        await store.close()


async def test_what_was_declared_is_there_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "state" / "router.db"
    ended = subprocess.run([sys.executable, "-c", DECLARE_AND_DIE, str(path)], check=False, timeout=60)  # noqa: ASYNC221
    assert ended.returncode == -9
    assert (await stored(path)).declarations == [declaration()]


async def test_declarations_withdrawals_and_hosts_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    store = DeclarationStore(path)
    await store.open()
    await store.declare(declaration("own", "h1"))
    await store.declare(declaration("own", "h2"))
    await store.declare(declaration("kept", excepted=frozenset({"h1", "h2"})))
    await store.withdraw("gone")
    await store.forget("own", "h1")
    await store.save_hosts([pb.Host(name="old")])
    await store.save_hosts([pb.Host(name="h2"), pb.Host(name="h1", address="unix:x")])
    await store.close()
    state = await stored(path)
    assert state.declarations == [declaration("kept", excepted=frozenset({"h1", "h2"})), declaration("own", "h2")]
    assert state.withdrawn == {"gone"}
    assert state.hosts == [pb.Host(name="h1", address="unix:x"), pb.Host(name="h2")]


async def test_one_for_all_hosts_takes_the_place_of_all_others_and_of_a_withdrawal(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    store = DeclarationStore(path)
    await store.open()
    await store.withdraw("pirate")
    await store.declare(declaration(host="h1"))
    await store.declare(declaration())
    await store.close()
    state = await stored(path)
    assert (state.declarations, state.withdrawn) == ([declaration()], set())


async def test_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    await stored(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(sqlite3.DatabaseError, match="another version"):
        await stored(path)
