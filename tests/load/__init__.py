"""Measurements: numbers together with the command that made them."""
