"""The GPUs, as the driver's own tool tells of them, and whether the engines can use them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from vllm_proxy.cli.doctor.check import Finding, Site, ok, warn

_TIMEOUT_S = 4.0
_QUERY = ("--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader")


def gpus(site: Site) -> Iterator[Finding]:
    kinds = {spec.engine for spec in site.settings.hosts().values()} - {"sim"}
    found = _found()
    if isinstance(found, str):
        yield warn(
            f"the GPUs cannot be asked: {found}", "nvidia-smi must work: reboot after a driver update, or reinstall it"
        )
        return
    for row in found:
        yield ok(row)
    if found:
        for kind in sorted(kinds):
            packages = site.code_root.glob(f".venv/{kind}/lib/python*/site-packages/torch-*+cpu.dist-info")
            if any(packages):
                yield warn(
                    f"{kind}'s environment has the build for CPUs, and there is a GPU",
                    f"rm -rf .venv/{kind}; scripts/install.sh {kind}",
                )
    elif "sglang" in kinds:
        yield warn(
            "there is no GPU, and SGLang needs one", "run it on a machine with an NVIDIA GPU, or serve with vLLM"
        )
    else:
        yield ok("there is no NVIDIA GPU" + ("; vLLM's build for CPUs is used" if "vllm" in kinds else ""))


def _found() -> list[str] | str:
    """A line for each; why they cannot be asked if there should be some."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"nvidia-smi: {type(e).__name__}"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0:
        return lines[0] if lines else f"nvidia-smi ended with {done.returncode}"
    return [
        f"{name}, {total} ({free} free), driver {driver}"
        for name, total, free, driver in (line.split(", ") for line in lines if line.count(", ") == 3)
    ]
