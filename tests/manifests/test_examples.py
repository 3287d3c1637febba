"""The examples: their pods are as locked down as ours, and the component's names are its own."""

from __future__ import annotations

from pathlib import Path

import yaml

from quantlib.cli.verify import verify

MANIFESTS = Path(__file__).parents[2] / "manifests"


def test_a_pod_verifies_the_very_volume_that_it_serves() -> None:
    _, deployment = yaml.safe_load_all(
        (MANIFESTS / "examples" / "verified-serving.yaml").read_text()
    )
    spec = deployment["spec"]["template"]["spec"]
    [check], [server] = spec["initContainers"], spec["containers"]
    mounts = {
        name: {mount["name"]: mount for mount in container["volumeMounts"]}
        for name, container in (("check", check), ("server", server))
    }
    model = mounts["check"]["model"]
    assert model == mounts["server"]["model"]
    assert model["readOnly"], "nothing changes it between the check and the serving"
    assert server["args"][:2] == ["--model", model["mountPath"]]
    assert check["command"] == ["python", "-m", "quantlib"]
    name, *words = check["args"]
    assert name == verify.name
    context = verify.make_context("verify", list(words))
    assert context.params["published"] == model["mountPath"]
    assert context.params["require_signature"]
    assert str(context.params["public_key"]).startswith("/keys/")
    for container in (check, server):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]


def test_a_deployment_is_changed_by_name_only() -> None:
    path = MANIFESTS / "components" / "promote-deployment" / "role.yaml"
    role, _ = yaml.safe_load_all(path.read_text())
    assert all(rule["resourceNames"] for rule in role["rules"])
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "patch"}


def test_a_canary_is_changed_by_name_only() -> None:
    path = MANIFESTS / "components" / "promote-llm-canary" / "role.yaml"
    role, _ = yaml.safe_load_all(path.read_text())
    unnamed = [rule for rule in role["rules"] if not rule.get("resourceNames")]
    assert [(rule["resources"], rule["verbs"]) for rule in unnamed] == [
        (["llminferenceservices"], ["create"])
    ]
