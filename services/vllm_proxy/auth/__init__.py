"""The auth service: keys, limits, leases and the book of tokens."""
