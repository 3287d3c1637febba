"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 10000, 22000
"""Below those that the kernel gives to outgoing connections, also 10000 higher."""
_SEAWEED_GRPC = 10000
"""SeaweedFS also listens this much above each of its ports."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on, nor on those 10000 above them.

    A server may take seconds to listen: in ports that outgoing connections get, somebody else's
    connection would take its place meanwhile.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(_FIRST, _LAST)
        if port not in ports and _is_free(port) and _is_free(port + _SEAWEED_GRPC):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
