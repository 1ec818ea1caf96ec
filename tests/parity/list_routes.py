"""Prints every route that vLLM can have, of all tasks and in its development mode, as JSON: [method, path].

Runs in vLLM's environment with VLLM_SERVER_DEV_MODE=1; nothing is loaded.
"""

from __future__ import annotations

import importlib
import json

from fastapi import FastAPI
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.tasks import FRONTEND_TASKS, GENERATION_TASKS, POOLING_TASKS
from vllm.utils.argparse_utils import FlexibleArgumentParser

#: vLLM adds these only with a model of their kind, which there is none of here.
POOLING = ("pooling", "classify", "embed", "scoring")
FLAGS = ["--model", "none", "--enable-tokenizer-info-endpoint", "--enable-scale-out", "--enable-fault-tolerance"]


def application() -> FastAPI:
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(FLAGS)
    app = build_app(arguments, (*GENERATION_TASKS, *POOLING_TASKS, *FRONTEND_TASKS), None)
    for name in POOLING:
        app.include_router(importlib.import_module(f"vllm.entrypoints.pooling.{name}.api_router").router)
    return app


if __name__ == "__main__":
    rows = []
    for route in application().routes:
        # A mounted application and a websocket have no methods.
        for method in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
            rows.append([method, route.path])
    print(json.dumps(rows))
