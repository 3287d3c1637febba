"""Addresses of servers that are told of what goes on."""

from __future__ import annotations

from urllib.parse import urlsplit


def url_fault(url: str) -> str:
    """What is wrong with an address of a server; empty for nothing. It does not repeat it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no address: give http://host:port"
    if parts.scheme not in ("http", "https") or not host:
        return "is no address of a server: give http://host:port, or https://…"
    if parts.username or parts.password:
        return "holds a user or a password, which would get into logs"
    return ""
