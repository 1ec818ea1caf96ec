#!/usr/bin/env bash
# phase.sh TITLE COMMAND...: runs a command under a header, and says how long it took.
set -uo pipefail
title=$1
shift
printf '\n== %s\n' "$title"
started=$SECONDS
"$@"
status=$?
if [ "$status" -ne 0 ]; then
  printf '== %s: FAILED after %d s: %s\n' "$title" $((SECONDS - started)) "$*" >&2
  exit "$status"
fi
printf '== %s: ok, %d s\n' "$title" $((SECONDS - started))
