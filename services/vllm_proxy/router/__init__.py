"""The router: which hosts live, what they serve, which adapters are wanted where."""
