"""LoRA adapters on this host: what may be loaded, and what is."""
