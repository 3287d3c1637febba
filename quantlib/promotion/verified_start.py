"""Lets the pods of a service verify what they serve before vLLM starts.

An InferenceService whose checkpoint KServe fetches names the ``ClusterStorageContainer`` that
verifies. A volume is mounted as it is: there an init container verifies the copy, and names the
checkpoint that it has to be. Image and key are those of the ``ClusterStorageContainer``.
"""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import PurePosixPath
from typing import Any

from quantlib.errors import InvalidInputError, Problem
from quantlib.promotion.kinds import Document

STORAGE_CONTAINER = "quantlib-verified"
"""What ``manifests/components/verified-storage`` calls it."""

INIT_CONTAINER = "quantlib-verify"
_MOUNT = "/mnt/models"
_CLAIM = "quantlib-published"
_KEY = "quantlib-release-key"
_SCRATCH = "quantlib-scratch"
_KEY_VARIABLE = "QUANTLIB_PUBLIC_KEY"


def verifies(kind: str, document: Document) -> bool:
    """Whether a service's pods verify what they serve, each as :func:`verified_spec` lets them.

    Args:
        kind: Of the service.
        document: The service.
    """
    pod = _pod_of(kind, document)
    return pod.get("storageContainerName") == STORAGE_CONTAINER or any(
        each.get("name") == INIT_CONTAINER for each in pod.get("initContainers") or ()
    )


def other_digest_problems(kind: str, document: Document, digest: str) -> list[Problem]:
    """What keeps pods of a service from starting with a checkpoint: they verify another one.

    Args:
        kind: Of the service.
        document: The service, as it is written by hand.
        digest: The checkpoint's, with ``sha256:``.
    """
    expected = f"--digest={digest}"
    return [
        Problem(
            f"{kind} {document['metadata']['name']}",
            f"its init container {INIT_CONTAINER} verifies another checkpoint than {digest}",
            f"give it {expected} in the same change",
        )
        for each in _pod_of(kind, document).get("initContainers") or ()
        if each.get("name") == INIT_CONTAINER and expected not in (each.get("args") or ())
    ]


def verified_spec(
    kind: str, document: Document, uri: str, digest: str, installed: Document | None
) -> Document:
    """The ``spec`` to lay over a service so that its pods verify a checkpoint before they serve it.

    Args:
        kind: Of the service.
        document: The service. What its lists hold stays.
        uri: Where its pods find the checkpoint.
        digest: The checkpoint's, with ``sha256:``.
        installed: The ``ClusterStorageContainer`` that verifies; None where there is none.

    Raises:
        InvalidInputError: There is none, it is not for the address, or what serves from there
            cannot verify.
    """
    container = _installed(installed, uri)
    key = _key_of(container)
    pod = _pod_of(kind, document)
    if kind == "InferenceService" and uri.startswith("s3://"):
        spec: Document = {"storageContainerName": STORAGE_CONTAINER}
        if verifies(kind, document):
            spec |= _without_ours(pod)
    elif match := re.fullmatch(r"pvc://([^/]+)/?(.*?)/?", uri):
        claim, path = match.groups()
        volume = {
            "name": _CLAIM,
            "persistentVolumeClaim": {"claimName": claim, "readOnly": True},
        }
        mount = {"name": _CLAIM, "mountPath": _MOUNT, "readOnly": True}
        if path:
            mount["subPath"] = path
        verifying = _verifying(container, key, _MOUNT, digest, mount)
        spec = _with_ours(pod, verifying, [volume, _key_volume(key)])
        if pod.get("storageContainerName") == STORAGE_CONTAINER:
            spec["storageContainerName"] = None
    elif kind == "Deployment" and (mounted := _mount_below(pod, uri)) is not None:
        verifying = _verifying(container, key, uri, digest, mounted | {"readOnly": True})
        spec = _with_ours(pod, verifying, [_key_volume(key)])
    else:
        raise InvalidInputError.one(
            f"{kind} {document['metadata']['name']}",
            f"has no way to verify {uri} before it is served",
            "serve it from a volume, or by an InferenceService, or leave --verify-on-start out",
        )
    if kind == "InferenceService":
        return {"predictor": spec}
    return {"template": spec if kind == "LLMInferenceService" else {"spec": spec}}


def _installed(installed: Document | None, uri: str) -> Document:
    """The container of the ``ClusterStorageContainer``."""
    where = f"ClusterStorageContainer {STORAGE_CONTAINER}"
    if installed is None:
        raise InvalidInputError.one(
            where,
            "is not there, or cannot be seen, so nothing would verify what is served",
            "add manifests/components/verified-storage to the overlay, and kubectl apply -k it",
        )
    spec = installed.get("spec") or {}
    formats = [each.get("prefix") or "" for each in spec.get("supportedUriFormats") or ()]
    if installed.get("disabled"):
        raise InvalidInputError.one(where, "is disabled", "enable it")
    if uri.startswith("s3://") and not any(each and uri.startswith(each) for each in formats):
        claimed = ", ".join(filter(None, formats)) or "nothing"
        raise InvalidInputError.one(
            where, f"is for {claimed}, not for {uri}", "add the prefix to its supportedUriFormats"
        )
    container: Document = spec.get("container") or {}
    if not container.get("image"):
        raise InvalidInputError.one(where, "names no image", "write its spec.container.image")
    return container


def _pod_of(kind: str, document: Document) -> Document:
    """What a service says of its pods."""
    spec = document["spec"]
    if kind == "InferenceService":
        return spec.get("predictor") or {}
    template = spec.get("template") or {}
    return template if kind == "LLMInferenceService" else template.get("spec") or {}


def _key_of(container: Document) -> Document:
    """In which ConfigMap the release key is: ``name`` and ``key``."""
    for variable in container.get("env") or ():
        source = (variable.get("valueFrom") or {}).get("configMapKeyRef")
        if variable["name"] == _KEY_VARIABLE and source:
            return {"name": source["name"], "key": source["key"]}
    raise InvalidInputError.one(
        f"ClusterStorageContainer {STORAGE_CONTAINER}",
        f"takes {_KEY_VARIABLE} from no ConfigMap",
        "name it there by configMapKeyRef",
    )


def _key_volume(key: Document) -> Document:
    return {"name": _KEY, "configMap": {"name": key["name"]}}


def _verifying(
    container: Document, key: Document, folder: str, digest: str, mount: Document
) -> Document:
    """The init container.

    Args:
        container: Whose image and limits it has.
        key: Where the release key is.
        folder: The checkpoint, as it sees it.
        digest: The checkpoint's.
        mount: Of the volume that holds it.
    """
    kept = ("image", "imagePullPolicy", "resources", "securityContext")
    return {
        "name": INIT_CONTAINER,
        **{key: deepcopy(container[key]) for key in kept if key in container},
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
            mount,
            {"name": _KEY, "mountPath": "/keys", "readOnly": True},
            {"name": _SCRATCH, "mountPath": "/scratch"},
        ],
    }


def _without_ours(pod: Document) -> Document:
    """The lists of a pod without what is ours, where it had some; emptied lists are null."""
    kept: dict[str, Any] = {}
    for key, ours in (("initContainers", (INIT_CONTAINER,)), ("volumes", (_CLAIM, _KEY, _SCRATCH))):
        before = pod.get(key) or []
        after = [deepcopy(each) for each in before if each.get("name") not in ours]
        if len(after) != len(before):
            kept[key] = after or None
    return kept


def _with_ours(pod: Document, container: Document, volumes: list[Document]) -> Document:
    """The lists of a pod with ours in them: who verifies comes after who fetches."""
    others = {key: deepcopy(pod.get(key) or []) for key in ("initContainers", "volumes")}
    others |= {key: value or [] for key, value in _without_ours(pod).items()}
    return {
        "initContainers": [*others["initContainers"], container],
        "volumes": [*others["volumes"], *volumes, {"name": _SCRATCH, "emptyDir": {}}],
    }


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
