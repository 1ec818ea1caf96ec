"""`python -m vllm_proxy.auth`: the auth service."""

import sys

from vllm_proxy.auth.server import serve
from vllm_proxy.common.lifecycle import argument_parser, load_or_exit, run_service

if __name__ == "__main__":
    sys.exit(run_service("auth", load_or_exit(argument_parser("auth").parse_args()), serve))
