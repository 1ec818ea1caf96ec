#!/bin/sh
# exec_with_pid.sh PID_FILE COMMAND...: becomes the command, after writing its process id to a file.
echo "$$" >"$1"
shift
exec "$@"
