"""gRPC as every service uses it: one server shape, one channel shape, one error mapping."""
