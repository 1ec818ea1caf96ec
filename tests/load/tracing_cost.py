"""What tracing costs: CPU per unary request of the gateway's processes, with it off, on for some and on for all.

    python -m tests.load.tracing_cost [--baseline FOLDER/services] [--rounds N] [--window-s S] [--connections N]

The gateways take turns in every round, as in bench.py. `--baseline` adds one that runs another checkout's services.
The collector is in this process, which is not counted.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from tests.load.bench import UNARY_SIM, LoadGenerator, Subject, measure_cpu
from tests.load.report import middle
from tests.support.cluster import ALICE, Cluster
from tests.support.otlp_collector import OtlpCollector

#: By name, the share of requests that are traced; None: tracing is off.
RATIOS = {"off": None, "1 %": 0.01, "all": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    args = parser.parse_args()
    with ExitStack() as stack:
        collector = stack.enter_context(OtlpCollector())
        load = LoadGenerator()
        stack.callback(load.close)
        subjects = []
        if args.baseline is not None:
            environment = {"PYTHONPATH": str(args.baseline.resolve())}
            subjects.append(
                _subject("baseline", stack.enter_context(Cluster({"sim": UNARY_SIM}, environment=environment)))
            )
        for name, ratio in RATIOS.items():
            tracing = {} if ratio is None else {"tracing": {"endpoint": collector.endpoint, "sample_ratio": ratio}}
            subjects.append(_subject(name, stack.enter_context(Cluster({"sim": UNARY_SIM, **tracing}))))
        rounds: dict[str, dict[str, list[float]]] = {subject.name: {} for subject in subjects}
        for turn in range(args.rounds):
            for subject in (*subjects[turn % len(subjects) :], *subjects[: turn % len(subjects)]):
                cpu_us, _ = measure_cpu(load, subject, args.connections, stream=False, window_s=args.window_s)
                collector.spans.clear()
                for process, value in {"all": sum(cpu_us.values()), **cpu_us}.items():
                    rounds[subject.name].setdefault(process, []).append(value)
    print(
        f"CPU time, µs per request at {args.connections} connections: median [lowest-highest] of {args.rounds} rounds"
    )
    for name, processes in rounds.items():
        shown = {process: middle(values) for process, values in processes.items()}
        columns = "  ".join(f"{p} {v['median']:.1f} [{v['min']:.1f}-{v['max']:.1f}]" for p, v in shown.items())
        print(f"  {name:<9} {columns}")


def _subject(name: str, cluster: Cluster) -> Subject:
    processes = {"edge": cluster.edge, "host": cluster.host, "auth": cluster.auth}
    return Subject(name, cluster.port, ALICE.key, processes)


if __name__ == "__main__":
    main()
