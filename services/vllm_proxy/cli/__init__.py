"""`vllm-proxy`: the operator's command line. One module per group of commands; it speaks gRPC to the services."""
