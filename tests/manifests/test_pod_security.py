import copy
from typing import Any

import pytest
from pod_security import restricted_problems

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "step",
            "image": "step:1",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
    "volumes": [{"name": "scratch", "emptyDir": {}}],
}


def test_our_pods_are_restricted(pod_specs: dict[str, dict[str, Any]], overlay: str) -> None:
    assert pod_specs.keys() == (
        {"object-store", "object-store-bucket"} if overlay == "local" else set()
    )
    for name, spec in pod_specs.items():
        assert restricted_problems(spec) == [], name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["limits"]["memory"], name


def test_the_check_lets_a_good_pod_through() -> None:
    assert restricted_problems(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["hostNetwork"], True, "hostNetwork is set"),
        (["hostPID"], True, "hostPID is set"),
        (["volumes", 0], {"name": "v", "hostPath": {"path": "/"}}, "volume v: hostPath"),
        (["volumes", 0], {"name": "v", "nfs": {}}, "volume v: nfs"),
        (["securityContext", "runAsNonRoot"], False, "container step: runAsNonRoot is not true"),
        (["securityContext", "runAsUser"], 0, "container step: runAsUser is 0"),
        (["securityContext", "seccompProfile", "type"], "Unconfined", "container step: seccomp"),
        (["securityContext", "sysctls"], [{"name": "a"}], "pod: sysctls"),
        (["containers", 0, "securityContext", "runAsNonRoot"], False, "container step: runAs"),
        (["containers", 0, "securityContext", "privileged"], True, "container step: privileged"),
        (
            ["containers", 0, "securityContext", "allowPrivilegeEscalation"],
            None,
            "container step: allowPrivilegeEscalation",
        ),
        (
            ["containers", 0, "securityContext", "capabilities"],
            {"drop": ["NET_RAW"]},
            "container step: capabilities do not drop ALL",
        ),
        (
            ["containers", 0, "securityContext", "capabilities", "add"],
            ["SYS_ADMIN"],
            "container step: capabilities add SYS_ADMIN",
        ),
        (["containers", 0, "ports"], [{"hostPort": 80}], "container step: hostPort 80"),
        (["initContainers"], [{"name": "init"}], "container init: allowPrivilegeEscalation"),
    ],
)
def test_the_check_sees(path: list[Any], value: Any, problem: str) -> None:
    pod = copy.deepcopy(GOOD)
    target: Any = pod
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert any(each.startswith(problem) for each in restricted_problems(pod))
