"""vLLM Proxy: an OpenAI-compatible gateway for self-hosted vLLM and SGLang engines."""

__version__ = "0.1.0"
