"""`python -m vllm_proxy.cli`: the same as `vllm-proxy`."""

import sys

from vllm_proxy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
