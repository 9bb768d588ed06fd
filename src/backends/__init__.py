"""Backends: what supplies hosts to compute environments and runs attempts on them."""
