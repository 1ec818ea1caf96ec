"""`python -m vllm_proxy.router`"""

import sys

from vllm_proxy.common.lifecycle import argument_parser, load_or_exit, run_service
from vllm_proxy.router.server import serve

if __name__ == "__main__":
    sys.exit(run_service("router", load_or_exit(argument_parser("router").parse_args()), serve))
