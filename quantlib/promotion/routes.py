"""An HTTPRoute that gives a canary its share of the traffic.

Source: Gateway API v1, ``HTTPRouteRule.backendRefs`` and their ``weight``.
"""

from __future__ import annotations

from copy import deepcopy

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import Document
from quantlib.promotion.rollout import workload_name


def require_route(route: Document, service: Document, *, can_share: bool) -> None:
    """Checks that a route can give a canary a share.

    Args:
        route: The route.
        service: What it leads to.
        can_share: Whether there is going to be a canary.

    Raises:
        InvalidInputError: It cannot.
    """
    where = f"--route {route['metadata']['name']}"
    if not can_share:
        raise InvalidInputError.one(
            where, "shares traffic with a canary of a service in Standard mode", "give --canary too"
        )
    for owner in route["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            raise InvalidInputError.one(
                where,
                f"belongs to {owner['kind']} {owner['name']}, which puts back what is changed",
                "make a route of your own that leads to the same Service",
            )
    main = workload_name(service)
    if not any(_leads_to(rule, main) for rule in route["spec"].get("rules") or ()):
        raise InvalidInputError.one(
            where, f"no rule of it leads to the Service {main}, and to it alone"
        )


def weighed(found: Document, before: Document, service: Document, percent: int) -> Document:
    """A route that gives a canary its share.

    Args:
        found: The route as it is.
        before: As it was before the promotion.
        service: What it leads to.
        percent: The canary's share.
    """
    main, second = workload_name(service), workload_name(service, canary=True)
    rules = deepcopy(before["spec"]["rules"])
    for rule in rules:
        if _leads_to(rule, main):
            (backend,) = rule["backendRefs"]
            rule["backendRefs"] = [
                backend | {"weight": 100 - percent},
                backend | {"name": second, "weight": percent},
            ]
    return found | {"spec": found["spec"] | {"rules": rules}}


def _leads_to(rule: Document, name: str | None) -> bool:
    return [each.get("name") for each in rule.get("backendRefs") or ()] == [name]
