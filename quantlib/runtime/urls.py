"""Addresses of servers that are told of what goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


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


def link_fault(link: str) -> str:
    """What is wrong with the address of a run's page, which holds ``{run}``; empty for nothing."""
    if fault := url_fault(link):
        return fault
    return "" if "{run}" in link else "does not say where the run's id stands: write {run} there"


def _without(fault_of: Callable[[str], str]) -> AfterValidator:
    def check(text: str) -> str:
        if text and (fault := fault_of(text)):
            raise PydanticCustomError("url", "{fault}", {"fault": fault})
        return text

    return AfterValidator(check)


Url = Annotated[str, _without(url_fault)]
"""A field with the address of a server; empty for none."""

RunLink = Annotated[str, _without(link_fault)]
"""A field with the address of a run's page; empty for none."""
