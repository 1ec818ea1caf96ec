"""`python -m vllm_proxy.engine_host --name NAME`: runs one engine host."""

from __future__ import annotations

import functools
import sys

from vllm_proxy.common.lifecycle import argument_parser, load_or_exit, run_service
from vllm_proxy.engine_host.server import serve


def main() -> int:
    parser = argument_parser("engine_host")
    parser.add_argument("--name", help="which of the configured engine hosts to run")
    args = parser.parse_args()
    loaded = load_or_exit(args)
    if args.name is None:
        parser.error("--name is needed: which of the configured engine hosts to run")
    return run_service(f"engine-{args.name}", loaded, functools.partial(serve, name=args.name))


if __name__ == "__main__":
    sys.exit(main())
