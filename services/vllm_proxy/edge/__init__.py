"""The edge: OpenAI HTTP outside, gRPC inside."""
