#!/usr/bin/env bash
# Stops everything, or the services that are named. Requests that run may end first; Ctrl-C cuts that short.
#   scripts/stop.sh [SERVICE...]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
if [ ! -x "$here/../.venv/gateway/bin/python" ]; then
  echo "nothing is installed yet, so nothing runs"
  exit 0
fi
exec "$here/proxyctl.sh" stop "$@"
