"""Turns the rounds of a bench into medians, spreads and ratios, and prints them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def summarize(rounds: Mapping[str, Any]) -> dict[str, Any]:
    cpu_us: dict[str, Any] = {}
    for load, subjects in rounds["cpu_us"].items():
        cpu_us[load] = {
            subject: {
                **{process: middle(values) for process, values in processes.items()},
                "all": middle([sum(values) for values in zip(*processes.values(), strict=True)]),
            }
            for subject, processes in subjects.items()
        }
    latency_ms = {
        kind: {
            subject: {percentile: middle(values) for percentile, values in percentiles.items()}
            for subject, percentiles in subjects.items()
        }
        for kind, subjects in rounds["latency_ms"].items()
    }
    added_ms = {
        kind: {
            subject: {
                percentile: middle([a - b for a, b in zip(values, subjects["backend"][percentile], strict=True)])
                for percentile, values in percentiles.items()
            }
            for subject, percentiles in subjects.items()
            if subject != "backend"
        }
        for kind, subjects in rounds["latency_ms"].items()
    }
    rate = {
        load: {subject: middle(values) for subject, values in subjects.items()}
        for load, subjects in rounds["rate_per_s"].items()
    }
    return {
        "cpu_us": cpu_us,
        "rate_per_s": rate,
        "latency_ms": latency_ms,
        "added_ms": added_ms,
        "ratios": _ratios(cpu_us),
    }


def _ratios(cpu_us: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The gateway's CPU time against the other subjects', everything counted on both sides."""
    return {
        load: {
            f"gateway / {other}": round(subjects["gateway"]["all"]["median"] / subjects[other]["all"]["median"], 2)
            for other in ("smg", "backend")
        }
        for load, subjects in cpu_us.items()
    }


def print_report(report: Mapping[str, Any]) -> None:
    summary = report["summary"]
    rounds = report["plan"]["rounds"]
    print(f"CPU time, µs per token (streams) or request (connections): median [lowest-highest] of {rounds} rounds\n")
    for load, subjects in summary["cpu_us"].items():
        print(load)
        for subject, processes in subjects.items():
            parts = "  ".join(f"{process} {_shown(value)}" for process, value in processes.items() if process != "all")
            rate = summary["rate_per_s"][load].get(subject)
            held = f"  ({rate['median']:,.0f}/s)" if rate else ""
            print(f"  {subject:<12} {_shown(processes['all']):<22} {parts}{held}")
        ratios = "  ".join(f"{name} = {value:.2f}" for name, value in summary["ratios"][load].items())
        print(f"  {ratios}\n")
    print("Time to first byte, one connection, ms: median of the rounds' percentiles (added to the backend alone)\n")
    for kind, subjects in summary["latency_ms"].items():
        print(kind)
        for subject, percentiles in subjects.items():
            added = summary["added_ms"][kind].get(subject)
            shown = "  ".join(
                f"{name} {value['median']:.2f}" + (f" (+{added[name]['median']:.2f})" if added else "")
                for name, value in percentiles.items()
            )
            print(f"  {subject:<12} {shown}")
    print()


def _shown(value: Mapping[str, float]) -> str:
    return f"{value['median']:.1f} [{value['min']:.1f}-{value['max']:.1f}]"
