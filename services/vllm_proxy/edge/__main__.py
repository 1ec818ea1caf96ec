"""`python -m vllm_proxy.edge`: one edge worker."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from vllm_proxy.common.lifecycle import argument_parser, load_or_exit, run_service
from vllm_proxy.edge.app import serve


def main() -> int:
    parser = argument_parser("edge")
    parser.add_argument(
        "--listen-fd",
        type=int,
        metavar="N",
        help="serve on the listening socket that is open as descriptor N instead of binding fastapi_host:fastapi_port",
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="write the process id there once this worker serves: all workers answer at one port, so none can be asked",
    )
    args = parser.parse_args()
    on_ready = partial(_say_ready, args.ready_file) if args.ready_file else None
    return run_service("edge", load_or_exit(args), partial(serve, listen_fd=args.listen_fd, on_ready=on_ready))


def _say_ready(path: Path) -> None:
    path.write_text(f"{os.getpid()}\n")


sys.exit(main())
