"""`vllm-proxy doctor`: looks for the usual mistakes and names the fix of each. Changes nothing; runs whether or not the
services do."""
