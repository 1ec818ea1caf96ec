"""vLLM Proxy: an OpenAI-compatible gateway for self-hosted vLLM and SGLang engines."""

import os

__version__ = "0.1.0"

# grpcio reads these when it is first imported, so they stand where no module of ours comes before. Without its event
# engine a message passes through fewer threads on its way to the event loop (docs/adr/0001); poll(2) is quick on one or
# two sockets; and forked supervisors need no fork handlers.
os.environ.setdefault(
    "GRPC_EXPERIMENTS",
    "-event_engine_client,-event_engine_listener,-event_engine_callback_cq,-event_engine_for_all_other_endpoints,"
    "-event_engine_fork",
)
os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
