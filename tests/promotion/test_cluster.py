"""Kubeconfigs that lead nowhere, and what else than an API server may answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from kubeflow_api import recorded_server

from quantlib.errors import InvalidInputError
from quantlib.promotion.cluster import UnreachableError, find_service


def kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "ours",
        "contexts": [{"name": "ours", "context": {"cluster": "ours", "user": "me"}}],
        "clusters": [{"name": "ours", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": "secret-token"}}],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clusters: [", "kubeconfig: cannot be read: while parsing a flow node"),
        ("[]", "kubeconfig: cannot be read: list indices must be"),
        ("clusters: 3", "kubeconfig: "),
        ("{}", "kubeconfig: Invalid kube-config file"),
    ],
)
def test_a_kubeconfig_that_is_none(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(InvalidInputError) as refused:
        find_service("serving", "tiny")
    assert said in str(refused.value)


def test_a_login_before_the_api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_server() as server:
        server.login = (200, {"Content-Type": "text/html"})
        (tmp_path / "config").write_text(json.dumps(kubeconfig(server.host)))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(UnreachableError, match="is no API server, but perhaps a proxy") as told:
            find_service("serving", "tiny")
    assert "secret-token" not in str(told.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "tiny?x=1"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidInputError, match="is no name"):
        find_service("serving", name)
    with pytest.raises(InvalidInputError, match="is no name"):
        find_service(name, "tiny")
