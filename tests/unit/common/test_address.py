from __future__ import annotations

from pathlib import Path

import pytest

from vllm_proxy.common.rpc.address import MAX_UNIX_PATH_BYTES, dial_target, is_local, is_unix, prepare_unix


@pytest.mark.parametrize(
    "address", ["unix:.run/auth.sock", "unix:/run/a.sock", "localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"]
)
def test_only_this_machine_reaches(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "auth.internal:1", "localhost.evil.example:1"]
)
def test_others_reach(address: str) -> None:
    assert not is_local(address)


def test_unix_is_told_by_its_scheme() -> None:
    assert is_unix("unix:x") and not is_unix("127.0.0.1:1")


def test_the_sockets_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_unix(f"unix:{folder}/a.sock")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_the_kernel_is_named() -> None:
    path = "/tmp/" + "x" * MAX_UNIX_PATH_BYTES
    with pytest.raises(ValueError, match="longer than the 107 bytes"):
        prepare_unix(f"unix:{path}")


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        ("unix:.run/auth.sock", "unix:.run/auth.sock"),
        ("auth.internal:1", "auth.internal:1"),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_what_is_dialled(addresses: str, target: str) -> None:
    assert dial_target(addresses) == target


@pytest.mark.parametrize("addresses", ["a:1,b:2", "unix:a,unix:b", "127.0.0.1:1,[::1]:2"])
def test_a_list_that_cannot_be_dialled_is_refused(addresses: str) -> None:
    with pytest.raises(ValueError, match="a list has"):
        dial_target(addresses)
