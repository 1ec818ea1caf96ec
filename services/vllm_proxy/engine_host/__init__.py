"""The engine host: one engine and its LoRA registry behind gRPC."""
