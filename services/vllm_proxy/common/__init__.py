"""What every service needs: settings, errors, gRPC, lifecycle, logging, metrics."""

import os

# grpcio reads these when it is first imported. Without its event engine a message passes through fewer threads on its
# way to the event loop (docs/adr/0001); poll(2) is quick on one or two sockets; and forked supervisors need no fork
# handlers.
os.environ.setdefault(
    "GRPC_EXPERIMENTS",
    "-event_engine_client,-event_engine_listener,-event_engine_callback_cq,-event_engine_for_all_other_endpoints,"
    "-event_engine_fork",
)
os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
