"""Where a server is: addresses, and the URLs made of them."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """A URL without a path."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
