#!/usr/bin/env python3
"""Runs just the vLLM engine: the same engine host that scripts/start.sh runs, alone. See scripts/start_engine.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.start_engine import main

sys.exit(main("vllm"))
