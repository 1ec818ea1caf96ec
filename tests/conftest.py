"""Timings are never asserted: a machine that is busy fails no test."""

from hypothesis import settings

settings.register_profile("vllm-proxy", deadline=None)
settings.load_profile("vllm-proxy")
