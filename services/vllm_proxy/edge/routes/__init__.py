"""The ordinary FastAPI routes: everything that is not on the hot path."""
