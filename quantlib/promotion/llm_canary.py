"""The canary of an LLMInferenceService: a second one beside it, to which KServe splits traffic.

KServe makes an HTTPRoute of each. Those that name the same ``spec.router.route.group``, and serve
a model of the same name, share by their ``weight`` what comes in by the model's name: below
``/publishers/NAMESPACE/models/MODEL``, or with the header that names it. What lies below
``/NAMESPACE/SERVICE`` stays each one's own. Sources, in KServe 0.20: ``router_group.go``,
``router_group_routing.go`` and ``router.go`` of ``pkg/controller/v1alpha2/llmisvc``,
``config/llmisvcconfig/config-llm-router-route.yaml``, and ``validateTrafficFields`` in
``pkg/apis/serving/v1alpha2/llm_inference_service_validation.go``.
"""

from __future__ import annotations

import math
from copy import deepcopy
from urllib.parse import urlsplit

from quantlib.promotion.merging import Document, annotations_of

KIND = "LLMInferenceService"
_SHARE = ("group", "weight")
_OF_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"


def canary_name(name: str) -> str:
    """What the canary of a service is called, and the group that both are in."""
    return f"{name}-canary"


def why_no_share(document: Document) -> str | None:
    """Why KServe would not split the traffic of a service; None where it does."""
    router = document["spec"].get("router") or {}
    route = router.get("route")
    if route is None:
        return "it has no spec.router.route, of which KServe makes one"
    if router.get("ingress") is not None:
        return "its traffic comes by spec.router.ingress, which KServe does not split"
    for name in ("refs", "spec"):
        if (route.get("http") or {}).get(name):
            return f"its route is its own, by spec.router.route.http.{name}"
    if group := route.get("group"):
        return f"it is in the group {group} already"
    return None


def shared_url(document: Document) -> str | None:
    """Where what is split comes in, by the model's name; None where the status names nothing."""
    status, metadata = document.get("status") or {}, document["metadata"]
    model = document["spec"]["model"].get("name") or metadata["name"]
    path = f"/publishers/{metadata['namespace']}/models/{model}"
    urls = [each.get("url") or "" for each in status.get("addresses") or ()]
    return next((url for url in urls if urlsplit(url).path.rstrip("/") == path), None)


def canary_of(before: Document, served: Document, percent: int | None) -> Document:
    """The canary of a service.

    Args:
        before: The service before the promotion.
        served: The same with the new checkpoint.
        percent: The share of its traffic; None for no way in but its own Service.
    """
    name, spec = before["metadata"]["name"], deepcopy(served["spec"])
    least = spec.get("replicas") or (spec.pop("scaling", None) or {}).get("minReplicas") or 1
    spec["replicas"] = max(1, math.ceil(least * (percent or 0) / 100))
    # Where nothing is said, KServe calls the model as the object is called.
    spec["model"] = {"name": name} | spec["model"]
    if percent is None:
        spec.pop("router", None)
    else:
        spec = _sharing(spec, name, percent)
    annotations = {k: v for k, v in annotations_of(served).items() if k != _OF_KUBECTL}
    metadata = {"name": canary_name(name), "namespace": before["metadata"]["namespace"]}
    kind = {each: before[each] for each in ("apiVersion", "kind")}
    return kind | {"metadata": metadata | {"annotations": annotations}, "spec": spec}


def sharing(document: Document, percent: int) -> Document:
    """A service that leaves its canary a share of the traffic."""
    spec = _sharing(document["spec"], document["metadata"]["name"], 100 - percent)
    return document | {"spec": spec}


def not_sharing(document: Document) -> Document:
    """A service that shares with no canary of ours."""
    route = (document["spec"].get("router") or {}).get("route") or {}
    if route.get("group") != canary_name(document["metadata"]["name"]):
        return document
    alone = {name: value for name, value in route.items() if name not in _SHARE}
    router = document["spec"]["router"] | {"route": alone}
    return document | {"spec": document["spec"] | {"router": router}}


def _sharing(spec: Document, name: str, weight: int) -> Document:
    share = {"group": canary_name(name), "weight": weight}
    router = spec["router"] | {"route": spec["router"]["route"] | share}
    return spec | {"router": router}
