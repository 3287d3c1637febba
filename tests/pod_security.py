"""The restricted Pod Security Standard, as a check of pod specifications.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = {"RuntimeDefault", "Localhost"}
# A namespaced sysctl may be set; none of ours has a use for one.
FORBIDDEN_OF_POD = ("hostNetwork", "hostPID", "hostIPC")
FORBIDDEN_OF_CONTEXT = ("sysctls", "windowsOptions", "seLinuxOptions", "appArmorProfile")


def restricted_problems(pod: Mapping[str, Any]) -> list[str]:
    """What in a pod specification the restricted standard refuses, or this check does not know."""
    return list(_problems(pod))


def _problems(pod: Mapping[str, Any]) -> Iterator[str]:
    for name in FORBIDDEN_OF_POD:
        if pod.get(name):
            yield f"{name} is set"
    for volume in pod.get("volumes", []):
        yield from (
            f"volume {volume['name']}: {kind}" for kind in volume.keys() - VOLUMES - {"name"}
        )
    context = pod.get("securityContext", {})
    yield from (f"pod: {name}" for name in FORBIDDEN_OF_CONTEXT if name in context)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(kind, []):
            for problem in _container_problems(container, context):
                yield f"container {container['name']}: {problem}"


def _container_problems(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    context = {**pod, **own}
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if context.get("seccompProfile", {}).get("type") not in SECCOMP:
        yield "seccompProfile is neither RuntimeDefault nor Localhost"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("privileged"):
        yield "privileged"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities do not drop ALL"
    if added := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"capabilities add {', '.join(sorted(added))}"
    if own.get("procMount", "Default") != "Default":
        yield "procMount is not Default"
    yield from (name for name in FORBIDDEN_OF_CONTEXT if name in own)
    yield from (f"hostPort {p['hostPort']}" for p in container.get("ports", []) if "hostPort" in p)
