"""`python -m vllm_proxy.edge`: one edge worker."""

from __future__ import annotations

import sys
from functools import partial

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
    args = parser.parse_args()
    return run_service("edge", load_or_exit(args), partial(serve, listen_fd=args.listen_fd))


sys.exit(main())
