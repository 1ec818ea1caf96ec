"""OpenTelemetry tracing. Off: nothing of it is imported but `context` and `start`, and `open_tracer` gives None."""
