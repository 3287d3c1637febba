"""The component that removes what nobody needs from the store, added to each overlay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
from manifests.conftest import MANIFESTS, Document, build_with, find, of_kubernetes
from network_policies import Address, Pod, allows
from pod_security import restricted_problems

from components._images import named_images
from quantlib.store import open_store

NAME = "quantlib-store-gc"


@pytest.fixture
def built(overlay: str, tmp_path: Path) -> list[Document]:
    return build_with(overlay, MANIFESTS / "components" / "store-gc", tmp_path.resolve())


def template_of(documents: list[Document]) -> Document:
    return find(documents, "CronJob", NAME)["spec"]["jobTemplate"]["spec"]["template"]


def test_it_fits_the_schema_of_a_recent_kubernetes(built: list[Document]) -> None:
    for document in of_kubernetes(built):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_its_pod_is_restricted_and_may_do_nothing_but_reach_the_store(
    built: list[Document], overlay: str
) -> None:
    template = template_of(built)
    spec = template["spec"]
    assert restricted_problems(spec) == []
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"] == named_images().watch
    assert spec["serviceAccountName"] == "quantlib-steps"
    assert spec["automountServiceAccountToken"] is False
    policies = [each for each in built if each["kind"] == "NetworkPolicy"]
    pod = Pod("quantlib", template["metadata"]["labels"])
    if overlay == "local":
        store = Pod("quantlib", {"app.kubernetes.io/name": "object-store"})
        assert allows(policies, pod, store, 8333)
    assert not allows(policies, pod, Address("8.8.8.8"), 443)


def test_its_command_removes_what_is_old_without_torch(
    built: list[Document], tmp_path: Path
) -> None:
    settings = find(built, "ConfigMap", NAME)["data"]
    (container,) = template_of(built)["spec"]["containers"]
    store = open_store(str(tmp_path / "store"))
    store.put_bytes(b'{"schema": "quantlib/store/2"}', "layout.json")
    store.put_bytes(b"left by a killed run", "partial/quantize/" + 64 * "a" + "/state")
    os.utime(store.local_path("partial/quantize/" + 64 * "a" + "/state"), (0, 0))
    settings |= {"STORE": store.address}
    given = [re.sub(r"\$\((\w+)\)", lambda found: settings[found[1]], a) for a in container["args"]]
    command = [sys.executable, *container["command"][1:], *given]
    blocked = tmp_path / "blocked"
    for package in ("torch", "transformers", "greenlet"):  # which the image has none of
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text("raise ModuleNotFoundError")
    path = os.pathsep.join(filter(None, (str(blocked), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    named, removed = [
        subprocess.run(
            [*command, *grace],
            env=environment,
            capture_output=True,
            text=True,
        )
        for grace in ([], ["--grace-hours=0"])
    ]
    assert (named.returncode, removed.returncode) == (0, 0), named.stderr + removed.stderr
    assert "may go after the grace" in named.stdout
    assert "freed" in removed.stdout
    assert [file.path for file in store.list("partial")] == []
