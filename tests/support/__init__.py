"""What tests with real processes share: services, clusters of them, an HTTP client that can misbehave, the books."""
