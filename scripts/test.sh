#!/usr/bin/env bash
# test.sh: what `make test` runs. Two processes at a time, as on a machine with two cores. While the tests run that need
# no engine, the engines are installed and the demo model and its adapters are made in the background.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pytest=(.venv/gateway/bin/python -m pytest -q)
log=logs/test-engines.log
preparing=

stop() { [ -z "$preparing" ] || kill -- "-$preparing" 2>/dev/null || true; }
trap stop EXIT
trap 'exit 130' INT TERM

phase() { scripts/phase.sh "$@"; }

prepare_engines() { # a process group of its own, so that it can be stopped with all that it started
  mkdir -p logs
  set -m
  nice -n 5 bash -c 'scripts/install.sh demo sglang clients && make demo-lora' >"$log" 2>&1 &
  preparing=$!
  set +m
}

wait_for_engines() {
  printf '\n== engines, demo model and adapters (since the start, in the background; log: %s)\n' "$log"
  tail -n +1 -f --pid="$preparing" "$log" | sed 's/^/  /'
  if ! wait "$preparing"; then
    preparing=
    echo "== engines, demo model and adapters: FAILED: see above, mend it, then: scripts/install.sh demo sglang && make demo-lora" >&2
    exit 1
  fi
  preparing=
}

started=$SECONDS
scripts/install.sh dev
prepare_engines
make check
scripts/install.sh clients # waits for the install in the background
phase "integration tests" "${pytest[@]}" -n 3 --dist loadfile --no-loadscope-reorder tests/conformance tests/integration
wait_for_engines
phase "protos in the engines' environments" make protos-check
# The tests of one engine go to one process, which starts it once: see tests/conftest.py.
phase "the real engines: each alone, all services on vLLM, parity with vLLM's own server" \
  "${pytest[@]}" -n 2 --dist loadfile tests/engine tests/parity tests/system
printf '\n== make test: all passed, %d s\n' $((SECONDS - started))
