"""What every service needs: settings, errors, gRPC, lifecycle, logging, metrics."""

import os

# grpcio reads these when it is first imported. Polling one or two sockets with poll(2) halves the latency of a
# round trip against the default epoll engine (docs/adr/0001), and forked supervisors need no fork handlers.
os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
