"""Runs the engine hosts of one kind alone; what start_vllm.py and start_sglang.py share.

    python scripts/start_vllm.py [--wait] [--timeout SECONDS]    starts it; adopts one that runs
    python scripts/start_vllm.py --stop | --status | --print-cmd

Any Python will do: the work is done in the gateway's environment, which is installed if it is missing.
"""

import argparse
import os
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent


def main(engine: str) -> int:
    parser = argparse.ArgumentParser(description=f"Runs just the {engine} engine.")
    parser.add_argument("--wait", action="store_true", help="return when it answers, not at once")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="with --wait: how long (default: for ever)")
    parser.add_argument("--stop", action="store_true", help="stop it")
    parser.add_argument("--status", action="store_true", help="say whether it runs and answers")
    parser.add_argument("--print-cmd", action="store_true", help="print what would be started, as one shell command")
    parser.add_argument("--config", metavar="FILE", help="another configuration (default: config/config.yaml)")
    args = parser.parse_args()
    environment = dict(os.environ)
    if args.config:
        environment["CONFIG"] = str(Path(args.config).resolve())
    if args.stop:
        command = ["stop.sh", "--engine", engine]
    elif args.status:
        command = ["vllm-proxy", "status", "--engine", engine]
    elif args.print_cmd:
        command = ["proxyctl.sh", "command", "--engine", engine]
    else:
        command = ["start.sh", "--engine", engine, *([] if args.wait else ["--no-wait"])]
        if args.timeout is not None:
            command += ["--timeout", str(args.timeout)]
    try:
        return subprocess.call([str(SCRIPTS / command[0]), *command[1:]], env=environment)
    except KeyboardInterrupt:
        return 130
