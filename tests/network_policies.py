"""What NetworkPolicies let through, computed as a network plugin would."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod in the network."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Address:
    """Something that is no pod: a host outside, the metadata service, the control plane."""

    ip: str


def allows(
    policies: Iterable[Policy],
    source: Pod,
    destination: Pod | Address,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether a connection gets through: out of its source and, to a pod, into its destination."""
    policies = list(policies)
    out = _direction(policies, "Egress", source, destination, port, protocol)
    if isinstance(destination, Address):
        return out
    return out and _direction(policies, "Ingress", destination, source, port, protocol)


def _direction(
    policies: Iterable[Policy],
    direction: str,
    pod: Pod,
    peer: Pod | Address,
    port: int,
    protocol: str,
) -> bool:
    applying = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], pod.labels)
    ]
    side = "to" if direction == "Egress" else "from"
    return not applying or any(
        _has_port(rule, port, protocol)
        and (side not in rule or any(_is_peer(each, peer, pod.namespace) for each in rule[side]))
        for policy in applying
        for rule in policy["spec"].get(direction.lower(), [])
    )


def _has_port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return ports is None or any(
        each.get("protocol", "TCP") == protocol and each.get("port", port) == port for each in ports
    )


def _is_peer(rule: Mapping[str, Any], peer: Pod | Address, namespace: str) -> bool:
    if "ipBlock" in rule:
        # Addresses of pods lie in private ranges, which a plugin may or may not match by address.
        return isinstance(peer, Address) and _contains(rule["ipBlock"], peer.ip)
    if isinstance(peer, Address):
        return False
    if "namespaceSelector" in rule:
        names = {"kubernetes.io/metadata.name": peer.namespace, **peer.namespace_labels}
        in_namespace = _selects(rule["namespaceSelector"], names)
    else:
        in_namespace = peer.namespace == namespace
    return in_namespace and _selects(rule.get("podSelector", {}), peer.labels)


def _contains(block: Mapping[str, Any], ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return address in ipaddress.ip_network(block["cidr"]) and not any(
        address in ipaddress.ip_network(each) for each in block.get("except", [])
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return all(
        labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()
    ) and all(_matches(each, labels) for each in selector.get("matchExpressions", []))


def _matches(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(f"unknown operator: {expression['operator']}")
