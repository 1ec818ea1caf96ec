"""What the gateway costs: CPU per streamed token and per request, and the time it adds.

`make bench`, or `python -m tests.load.bench --help`. Three subjects take turns in every round, on the same simulated
engine and from the same load generator (which is not counted):

    gateway   client -> edge -> engine host, with auth, router, logging and metrics on
    smg       client -> smg -> the simulator's own minimal HTTP face
    backend   client -> that face

CPU time is that of whole process trees. The simulator's part of the engine host's is measured beside it, by letting
the same engine stream to consumers that do nothing, so that the host's transport can be told from the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.load.peer import Peer
from tests.load.report import print_report, summarize
from tests.support.cluster import ALICE, Cluster, free_port
from tests.support.process import ServiceProcess

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
#: Longer than any window: a stream that is measured never ends in it.
ENDLESS_TOKENS = 100_000
STREAM_SIM = {"step_ms": 10, "kv_cache_tokens": 1_000_000_000}
UNARY_SIM = {"step_ms": 0.05, "prefill_tokens_per_s": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 5
    window_s: float = 3.0
    streams: tuple[int, ...] = (1, 32, 256)
    connections: tuple[int, ...] = (1, 32)
    samples: int = 300


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that answers requests, and the processes that do the work for it."""

    name: str
    port: int
    key: str | None
    processes: Mapping[str, ServiceProcess]


@dataclass(slots=True)
class Results:
    """Every round's figures: `cpu_us[load][subject][process]`, `rate[load][subject]`, `latency_ms[kind][subject]`."""

    cpu_us: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    rate_per_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add_cpu(self, load: str, subject: str, cpu_us: Mapping[str, float], rate_per_s: float) -> None:
        processes = self.cpu_us.setdefault(load, {}).setdefault(subject, {})
        for process, value in cpu_us.items():
            processes.setdefault(process, []).append(value)
        self.rate_per_s.setdefault(load, {}).setdefault(subject, []).append(rate_per_s)

    def add_engine(self, load: str, cpu_us: float) -> None:
        self.cpu_us[load].setdefault("engine", {}).setdefault("engine", []).append(cpu_us)

    def add_latency(self, kind: str, subject: str, values_s: Sequence[float]) -> None:
        ordered = sorted(values_s)
        percentiles = self.latency_ms.setdefault(kind, {}).setdefault(subject, {})
        percentiles.setdefault("p50", []).append(ordered[len(ordered) // 2] * 1e3)
        percentiles.setdefault("p99", []).append(ordered[len(ordered) * 99 // 100] * 1e3)


class LoadGenerator:
    """The load generator's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.generator"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended at {do!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def chat_body(max_tokens: int, *, stream: bool) -> dict[str, Any]:
    """A request of about 1 KB."""
    words = "How much does a proxy cost? " * 32
    return {
        "model": "sim",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": max_tokens,
        "stream": stream,
    }


@contextmanager
def subjects(sim: Mapping[str, Any]) -> Iterator[list[Subject]]:
    """A gateway, the peer and the bare backend, all on one simulated engine."""
    backend_port = free_port()
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster({"sim": {**sim, "http_port": backend_port}}))
        gateway = {
            "edge": cluster.edge,
            "host": cluster.host,
            "auth": cluster.auth,
            "router": cluster.router,
        }
        backend = {"backend": cluster.host}
        peer = Peer(backend_port, cluster.root)
        peer.start()
        stack.callback(peer.end, 5.0)
        peer.wait_healthy()
        yield [
            Subject("gateway", cluster.port, ALICE.key, gateway),
            Subject("smg", peer.port, None, {"smg": peer, **backend}),
            Subject("backend", backend_port, None, backend),
        ]


def measure_cpu(load: LoadGenerator, subject: Subject, connections: int, *, stream: bool, window_s: float) -> Any:
    """CPU µs per event or request of each process in a window of steady load, and events or requests per second."""
    body = chat_body(ENDLESS_TOKENS if stream else 1, stream=stream)
    load.ask("start", port=subject.port, path=CHAT, key=subject.key, body=body, connections=connections, stream=stream)
    _steady(window_s / 4)
    before, cpu_before = load.ask("count"), _cpu_s(subject)
    _steady(window_s)
    after, cpu_after = load.ask("count"), _cpu_s(subject)
    load.ask("stop")
    if after["failed"]:
        raise RuntimeError(f"{subject.name}: {after['failed']} requests failed")
    count = after["count"] - before["count"]
    rate_per_s = count / (after["at_s"] - before["at_s"])
    return {name: (cpu_after[name] - cpu_before[name]) * 1e6 / count for name in cpu_after}, rate_per_s


def engine_alone_us(sim: Mapping[str, Any], calls: int, *, stream: bool, window_s: float) -> float:
    """CPU µs per token or request of the simulated engine in a process of its own, with nobody to serve."""
    command = [sys.executable, "-m", "tests.load.engine_alone", "--calls", str(calls), "--window-s", str(window_s)]
    command += ["--sim", json.dumps(dict(sim))]
    command += ["--body", json.dumps(chat_body(ENDLESS_TOKENS if stream else 1, stream=stream))]
    if not stream:
        command.append("--whole")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "services")}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _steady(duration_s: float) -> None:
    """Lets the load run; the one place where time itself is what is waited for."""
    time.sleep(duration_s)


def _cpu_s(subject: Subject) -> dict[str, float]:
    return {name: process.cpu_seconds() for name, process in subject.processes.items()}


def run(plan: Plan) -> Results:
    results = Results()
    load = LoadGenerator()
    try:
        if plan.streams:
            with subjects(STREAM_SIM) as taking_turns:
                for turn in range(plan.rounds):
                    _progress(f"streams, round {turn + 1} of {plan.rounds}")
                    for streams in plan.streams:
                        for subject in _rotated(taking_turns, turn):
                            cpu_us, rate = measure_cpu(load, subject, streams, stream=True, window_s=plan.window_s)
                            results.add_cpu(f"{streams} streams", subject.name, cpu_us, rate)
                        alone = engine_alone_us(STREAM_SIM, streams, stream=True, window_s=plan.window_s)
                        results.add_engine(f"{streams} streams", alone)
        with subjects(UNARY_SIM) as taking_turns:
            for turn in range(plan.rounds):
                _progress(f"requests, round {turn + 1} of {plan.rounds}")
                for connections in plan.connections:
                    for subject in _rotated(taking_turns, turn):
                        cpu_us, rate = measure_cpu(load, subject, connections, stream=False, window_s=plan.window_s)
                        results.add_cpu(f"{connections} connections", subject.name, cpu_us, rate)
                    alone = engine_alone_us(UNARY_SIM, connections, stream=False, window_s=plan.window_s)
                    results.add_engine(f"{connections} connections", alone)
                for kind, stream in (("streamed", True), ("unary", False)):
                    for subject in _rotated(taking_turns, turn):
                        body = chat_body(1, stream=stream)
                        sample = load.ask(
                            "sample", port=subject.port, path=CHAT, key=subject.key, body=body, samples=plan.samples
                        )
                        results.add_latency(kind, subject.name, sample["first_byte_s"])
    finally:
        load.close()
    return results


def _rotated(taking_turns: list[Subject], turn: int) -> list[Subject]:
    first = turn % len(taking_turns)
    return taking_turns[first:] + taking_turns[:first]


def _progress(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Plan().rounds, help="interleaved rounds (default: %(default)s)")
    parser.add_argument(
        "--window-s", type=float, default=Plan().window_s, help="one measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--streams", type=_numbers, default=Plan().streams, help="streams at once, e.g. 1,32,256; '' leaves them out"
    )
    parser.add_argument("--connections", type=_numbers, default=Plan().connections, help="of unary requests, e.g. 1,32")
    parser.add_argument("--samples", type=int, default=Plan().samples, help="of each latency (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results", help="folder for the JSON")
    args = parser.parse_args()
    plan = Plan(args.rounds, args.window_s, args.streams, args.connections, args.samples)
    results = run(plan)
    now = datetime.now(UTC)
    report = {
        "command": " ".join(["python", "-m", "tests.load.bench", *sys.argv[1:]]),
        "at": now.isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "python": platform.python_version()},
        "plan": asdict(plan),
        "rounds": asdict(results),
        "summary": summarize(asdict(results)),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"bench-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(report, indent=2))
    print_report(report)
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
