"""Generates services/vllm_proxy/api from protos/, or checks that it is what is committed.

    .venv/gateway/bin/python -m scripts.protos [--check]

The import path of a generated module is its proto's path, so nothing is patched afterwards. The check also imports
every generated module in each environment that is installed: an engine may bring another protobuf than the gateway.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PROTOS = Path("protos")
SERVICES = Path("services")
API = Path("vllm_proxy/api")
#: The environments that services run in.
ENVIRONMENTS = tuple(Path(".venv") / name for name in ("gateway", "vllm", "sglang"))


def generate(target: Path) -> None:
    """Writes the modules under `target`, which gets the folder vllm_proxy/api."""
    from grpc_tools import protoc

    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    target.mkdir(parents=True, exist_ok=True)
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")


def stale_modules(generated: Path, committed: Path) -> list[str]:
    """Modules that are missing, differ or are left over, relative to both folders."""
    fresh = {path.relative_to(generated) for path in generated.rglob("*_pb2*.py*")}
    there = {path.relative_to(committed) for path in committed.rglob("*_pb2*.py*") if "__pycache__" not in path.parts}
    differing = {path for path in fresh & there if not filecmp.cmp(generated / path, committed / path, shallow=False)}
    return sorted(str(path) for path in (fresh ^ there) | differing)


def import_everywhere(modules: list[str]) -> list[str]:
    """Imports the modules in each installed environment; returns what went wrong, one line per environment."""
    faults = []
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    for environment in ENVIRONMENTS:
        python = environment / "bin" / "python"
        if not any(environment.glob(".installed-*")) or (environment / ".installing").exists():
            continue
        done = subprocess.run(
            [str(python), "-W", "error", "-c", code, *modules],
            env={"PYTHONPATH": str(SERVICES.resolve())},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            faults.append(f"{python}: {done.stderr.strip().splitlines()[-1]}")
        else:
            print(f"{len(modules)} generated modules load in {environment}")
    return faults


def check() -> None:
    """Exits with 1 and the reasons if the committed code is not what protos/ say, or does not load somewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = stale_modules(Path(scratch) / API, SERVICES / API)
        modules = sorted(
            ".".join(path.relative_to(scratch).with_suffix("").parts) for path in Path(scratch).rglob("*_pb2*.py")
        )
    if stale:
        sys.exit("not what protos/ say; run `make protos` and commit:\n" + "\n".join(f"  {API}/{p}" for p in stale))
    if faults := import_everywhere(modules):
        sys.exit("\n".join(faults))


def main() -> None:
    parser = argparse.ArgumentParser(description="Generates the code for protos/.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something would change")
    if parser.parse_args().check:
        check()
    else:
        generate(SERVICES)


if __name__ == "__main__":
    main()
