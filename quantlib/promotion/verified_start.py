"""Lets the pods of a service verify what they serve before vLLM starts.

An InferenceService whose checkpoint KServe fetches names the ``ClusterStorageContainer`` that
verifies. A volume is mounted as it is: there an init container verifies the copy, and names the
checkpoint that it has to be. Image and key are those of the ``ClusterStorageContainer``. An image
that is named by its digest needs nothing: nodes verify what they pull.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import PurePosixPath

from quantlib.errors import InvalidInputError, Problem
from quantlib.promotion.kinds import pod_of
from quantlib.promotion.merging import Document
from quantlib.publishing.destination import pin_of

STORAGE_CONTAINER = "quantlib-verified"
"""What ``manifests/components/verified-storage`` calls it."""

INIT_CONTAINER = "quantlib-verify"
_WHERE = f"ClusterStorageContainer {STORAGE_CONTAINER}"
_MOUNT = "/mnt/models"
_CLAIM = "quantlib-published"
_KEY = "quantlib-release-key"
_SCRATCH = "quantlib-scratch"
_IMAGES = ("oci://", "oci+native://")
_KEY_VARIABLE = "QUANTLIB_PUBLIC_KEY"
_OURS = {"initContainers": (INIT_CONTAINER,), "volumes": (_CLAIM, _KEY, _SCRATCH)}


def verifies(document: Document) -> bool:
    """Whether a service's pods verify what they serve, as :func:`verified` lets them."""
    named = pod_of(deepcopy(document)).get("storageContainerName") == STORAGE_CONTAINER
    return named or any(_verifying(document))


def other_digest_problems(document: Document, digest: str) -> Iterator[Problem]:
    """That pods of a service verify another checkpoint, which keeps them from starting."""
    expected = f"--digest={digest}"
    for each in _verifying(document):
        if expected not in (each.get("args") or ()):
            yield Problem(
                f"{document['kind']} {document['metadata']['name']}",
                f"its init container {INIT_CONTAINER} verifies another checkpoint than {digest}",
                f"give it {expected} in the same change",
            )


def _verifying(document: Document) -> Iterator[Document]:
    for each in pod_of(deepcopy(document)).get("initContainers") or ():
        if each.get("name") == INIT_CONTAINER:
            yield each


def verified(document: Document, uri: str, digest: str, installed: Document | None) -> Document:
    """A service whose pods verify a checkpoint before they serve it, and is otherwise as it was.

    ``uri`` is where its pods find the checkpoint, ``digest`` begins with ``sha256:``, and
    ``installed`` is the ``ClusterStorageContainer`` that verifies, if there is one.

    Raises:
        InvalidInputError: Nothing would verify what is served from there.
    """
    kind, changed = document["kind"], deepcopy(document)
    pod = pod_of(changed)
    if uri.startswith(_IMAGES) and pin_of(uri):
        # A node pulls what has that digest, which is the one that was verified, or nothing.
        _take_back(pod)
        return changed
    container = _installed(installed, uri)
    key = _key_of(container)
    if kind == "InferenceService" and uri.startswith("s3://"):
        if verifies(document):
            _remove_ours(pod)
        pod["storageContainerName"] = STORAGE_CONTAINER
        return changed
    mount = None
    if match := re.fullmatch(r"pvc://([^/]+)/?(.*?)/?", uri):
        claim, path = match.groups()
        folder = _MOUNT
        mount = {"name": _CLAIM, "mountPath": _MOUNT} | ({"subPath": path} if path else {})
        volume = {"claimName": claim, "readOnly": True}
        volumes = [{"name": _CLAIM, "persistentVolumeClaim": volume}]
    elif kind == "Deployment":
        folder, mount, volumes = uri, _mount_below(pod, uri), []
    if mount is None:
        raise InvalidInputError.one(
            f"{kind} {document['metadata']['name']}",
            f"has no way to verify {uri} before it is served",
            "serve it from a volume, or by an InferenceService, or leave --verify-on-start out",
        )
    _take_back(pod)
    volumes += [{"name": _KEY, "configMap": {"name": key["name"]}}]
    pod["volumes"] = [*(pod.get("volumes") or ()), *volumes, {"name": _SCRATCH, "emptyDir": {}}]
    kept = ("image", "imagePullPolicy", "resources", "securityContext")
    verifying = {
        "name": INIT_CONTAINER,
        **{name: deepcopy(container[name]) for name in kept if name in container},
        "command": ["python", "-m", "quantlib"],
        "args": [
            "verify",
            folder,
            f"--digest={digest}",
            f"--public-key=/keys/{key['key']}",
            "--require-signature",
        ],
        # The line that says why it failed is shown in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            mount | {"readOnly": True},
            {"name": _KEY, "mountPath": "/keys", "readOnly": True},
            {"name": _SCRATCH, "mountPath": "/scratch"},
        ],
    }
    # Who verifies comes after who fetches.
    pod["initContainers"] = [*(pod.get("initContainers") or ()), verifying]
    return changed


def _installed(installed: Document | None, uri: str) -> Document:
    """The container of the ``ClusterStorageContainer``."""
    if installed is None:
        raise InvalidInputError.one(
            _WHERE,
            "is not there, or cannot be seen, so nothing would verify what is served",
            "add manifests/components/verified-storage to the overlay, and kubectl apply -k it",
        )
    spec = installed.get("spec") or {}
    formats = [each.get("prefix") or "" for each in spec.get("supportedUriFormats") or ()]
    if installed.get("disabled"):
        raise InvalidInputError.one(_WHERE, "is disabled", "enable it")
    if uri.startswith("s3://") and not any(each and uri.startswith(each) for each in formats):
        what = f"is for {', '.join(filter(None, formats)) or 'nothing'}, not for {uri}"
        raise InvalidInputError.one(_WHERE, what, "add the prefix to its supportedUriFormats")
    container: Document = spec.get("container") or {}
    if not container.get("image"):
        raise InvalidInputError.one(_WHERE, "names no image", "write its spec.container.image")
    return container


def _key_of(container: Document) -> Document:
    """In which ConfigMap the release key is: ``name`` and ``key``."""
    for variable in container.get("env") or ():
        source: Document = (variable.get("valueFrom") or {}).get("configMapKeyRef") or {}
        if variable["name"] == _KEY_VARIABLE and source:
            return source
    what = f"takes {_KEY_VARIABLE} from no ConfigMap"
    raise InvalidInputError.one(_WHERE, what, "name it there by configMapKeyRef")


def _take_back(pod: Document) -> None:
    _remove_ours(pod)
    if pod.get("storageContainerName") == STORAGE_CONTAINER:
        del pod["storageContainerName"]


def _remove_ours(pod: Document) -> None:
    """Takes what is ours out of the lists of a pod, and a list that is empty then."""
    for name, ours in _OURS.items():
        others = [each for each in pod.pop(name, None) or () if each.get("name") not in ours]
        if others:
            pod[name] = others


def _mount_below(pod: Document, folder: str) -> Document | None:
    """How the container that serves mounts the volume that holds a folder; None if it does not."""
    path, containers = PurePosixPath(folder), pod.get("containers") or []
    mounts = [
        mount
        for container in [each for each in containers if each["name"] == "vllm"] or containers
        for mount in container.get("volumeMounts") or ()
        if path.is_relative_to(mount["mountPath"])
    ]
    # The one that is mounted deepest is what is seen there.
    return deepcopy(max(mounts, key=lambda mount: len(mount["mountPath"]), default=None))
