#!/usr/bin/env bash
# Starts everything, or the services that are named, after installing what is missing; what already runs is adopted.
#   scripts/start.sh [--follow | --no-wait] [--nginx] [SERVICE...]
# CONFIG names another configuration, MODEL another model, MODEL_ARGS more flags for it.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
export CONFIG=${CONFIG:-$here/../config/config.yaml}
"$here/install.sh" --for "$(realpath -m -- "$CONFIG")" --model "${MODEL:-}" -- "$@"
exec "$here/proxyctl.sh" start --model "${MODEL:-}" --model-args "${MODEL_ARGS:-}" "$@"
