"""Schemathesis over the edge's own description: requests made up from it, good and bad, one after another.

`make fuzz` runs it for 20 minutes over the simulated engine (SECONDS=, SEED=), or over an edge that runs already
(URL=, KEY=, FUZZ_MODEL=). It ends with 1 if an answer was a 5xx or not as described, or if one did not come in time.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.cluster import ADMIN, Cluster
from tests.support.process import CLIENTS_PYTHON

REQUEST_TIMEOUT_S = 10
#: Where it keeps what failed, for `schemathesis replay`.
REPLAYS = CLIENTS_PYTHON.parents[3] / ".cache" / "fuzz"
#: For the start, the report, and the request that runs when the time is over.
OVERTIME_S = 60
#: Short answers, so that none takes long.
SIM = {"step_ms": 1, "max_model_len": 256}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ensure_resource_availability",
    "ignored_auth",
)
#: Not `positive_data_acceptance`: what a body may say together (a range of times, a model) no schema tells. Nor
#: `use_after_free`: a revoked key stays known.


def fuzz(url: str, key: str, model: str, seconds: int, seed: int, *more: str) -> int:
    """Its output goes to standard output; the exit status of schemathesis."""
    command: Sequence[str] = (
        *(str(CLIENTS_PYTHON), "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS)),
        *("--max-time", str(seconds), "--seed", str(seed), "--request-timeout", str(REQUEST_TIMEOUT_S)),
        *("--generation-database", "none", "--no-color", "--warnings", "off", *more),
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "SCHEMATHESIS_HOOKS": "fuzz_hooks",
        "FUZZ_MODEL": model,
    }
    REPLAYS.mkdir(parents=True, exist_ok=True)
    limit_s = seconds + OVERTIME_S
    return subprocess.run(command, env=environment, cwd=REPLAYS, timeout=limit_s, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--url", help="of an edge that runs already")
    parser.add_argument("--key", default=ADMIN.key, help="an admin's, for that edge")
    parser.add_argument("--model", default="sim", help="what that edge serves")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    if args.url:
        return fuzz(args.url, args.key, args.model, args.seconds, args.seed, "--continue-on-failure")
    with Cluster({"sim": SIM}) as cluster:
        return fuzz(cluster.url, ADMIN.key, "sim", args.seconds, args.seed, "--continue-on-failure")


if __name__ == "__main__":
    sys.exit(main())
