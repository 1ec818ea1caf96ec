#!/usr/bin/env bash
# Makes the virtual environments under .venv/ (see scripts/install.py). Finds a Python from 3.11 on; PYTHON=... names one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_good() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }

for python in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13 python3.14; do
  if is_good "$python"; then exec "$python" -I scripts/install.py "$@"; fi
  if [ "$python" = "${PYTHON:-}" ]; then
    echo "PYTHON=$PYTHON is not a working Python 3.11 to 3.14" >&2
    exit 1
  fi
done
echo "Python 3.11 to 3.14 is needed, found $(python3 --version 2>&1 || true). Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: PYTHON=/path/to/python3.12" >&2
exit 1
