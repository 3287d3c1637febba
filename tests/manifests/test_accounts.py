from typing import Any

Documents = list[dict[str, Any]]


READ_OF_THE_CLUSTER = {
    "clusterservingruntimes": ["get", "list"],
    "clusterstoragecontainers": ["get"],
}


def of_kind(documents: Documents, *kinds: str) -> Documents:
    return [each for each in documents if each["kind"] in kinds]


def test_roles_are_narrow(documents: Documents) -> None:
    roles = of_kind(documents, "Role", "ClusterRole")
    assert roles
    for role in roles:
        if role["kind"] == "ClusterRole":
            [rule] = role["rules"]
            [resource] = rule["resources"]
            assert resource in READ_OF_THE_CLUSTER, "all else is in a namespace"
            assert rule["verbs"] == READ_OF_THE_CLUSTER[resource]
        for rule in role["rules"]:
            for part in ("apiGroups", "resources", "verbs"):
                assert not any("*" in each for each in rule[part]), role["metadata"]["name"]
            assert not {"serviceaccounts/token", "pods/exec"} & set(rule["resources"])
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"] == ["mlpipeline-minio-artifact"]
                assert rule["verbs"] == ["get"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_bindings_are_of_accounts_that_exist(documents: Documents) -> None:
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"])
        for each in of_kind(documents, "ServiceAccount")
    }
    roles = {
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in of_kind(documents, "Role", "ClusterRole")
    }
    bound = set()
    for binding in of_kind(documents, "RoleBinding", "ClusterRoleBinding"):
        role, namespace = binding["roleRef"], binding["metadata"].get("namespace")
        assert (role["kind"], namespace, role["name"]) in roles
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount"
            bound.add((subject["namespace"], subject["name"]))
    assert bound == accounts - {("quantlib", "quantlib-steps")}


def test_only_the_account_of_kubeflow_runs_mounts_a_token(documents: Documents) -> None:
    mounting = {
        each["metadata"]["name"]
        for each in of_kind(documents, "ServiceAccount")
        if each.get("automountServiceAccountToken", True)
    }
    assert mounting == {"quantlib-runner"}


def test_pods_use_accounts_that_exist(
    documents: Documents, pod_specs: dict[str, dict[str, Any]]
) -> None:
    accounts = {each["metadata"]["name"] for each in of_kind(documents, "ServiceAccount")}
    assert {spec["serviceAccountName"] for spec in pod_specs.values()} <= accounts
