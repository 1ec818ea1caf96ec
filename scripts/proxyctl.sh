#!/usr/bin/env bash
# Runs scripts/proxyctl.py in the gateway's environment. CONFIG names another configuration.
set -euo pipefail
config=$(realpath -m -- "${CONFIG:-$(dirname "${BASH_SOURCE[0]}")/../config/config.yaml}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/gateway/bin/python ]; then
  echo "nothing is installed yet, so nothing runs; \`make run\` installs and starts" >&2
  exit 3
fi
exec .venv/gateway/bin/python -m scripts.proxyctl --config "$config" "$@"
