"""Documents laid over each other, and compared."""

from typing import Any

import pytest

from quantlib.promotion.merging import difference, merged, unlike, with_missing

CASES = [
    ({"a": 1}, {"a": 1}, {}),
    ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
    ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}, {"a": {"b": 3}}),
    ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
    ({}, {"a": {"b": {}}}, {"a": {"b": {}}}),
]


@pytest.mark.parametrize(("before", "after", "patch"), CASES)
def test_a_patch_names_what_differs_and_makes_it(before: Any, after: Any, patch: Any) -> None:
    assert difference(before, after) == patch
    assert merged(before, patch, by_name=False) == after


def test_lists_are_merged_by_name_where_kubernetes_does() -> None:
    base = {"containers": [{"name": "proxy"}, {"name": "vllm", "args": ["old"], "image": "i"}]}
    patch = {"containers": [{"name": "vllm", "args": ["new"]}, {"name": "third"}]}
    found = merged(base, patch, by_name=True)["containers"]
    assert found == [
        {"name": "proxy"},
        {"name": "vllm", "args": ["new"], "image": "i"},
        {"name": "third"},
    ]
    assert merged(base, patch, by_name=False) == patch
    after = {"containers": found}
    assert difference(base, after, by_name=True) == patch
    assert difference(base, base, by_name=True) == {}


def test_what_is_missing_comes_back_and_what_others_set_stays() -> None:
    before = {"runtime": "vllm", "replicas": 1, "args": [1, 2], "model": {"uri": "old", "env": 1}}
    now = {"replicas": 3, "args": [1], "model": {"uri": "new"}, "added": True}
    assert with_missing(now, before) == now | {
        "runtime": "vllm",
        "model": {"uri": "new", "env": 1},
    }


def test_defaults_of_a_server_are_no_difference() -> None:
    wanted = {"metadata": {"name": "x"}, "spec": {"a": {"b": 1}, "list": [{"c": 1}], "empty": {}}}
    found = {
        "metadata": {"name": "x", "uid": "u", "annotations": {"added": "1"}},
        "spec": {"a": {"b": 1, "default": 2}, "list": [{"c": 1, "default": 2}]},
        "status": {},
    }
    assert unlike(wanted, found) == []
    del found["spec"]["a"]["b"]  # type: ignore[attr-defined]
    found["spec"]["list"] = []  # type: ignore[index]
    assert unlike(wanted, found) == ["spec.a.b", "spec.list"]


def test_annotations_are_compared_and_versions_are_not() -> None:
    wanted = {"metadata": {"annotations": {"a": "1"}, "resourceVersion": "1"}, "spec": {}}
    found = {"metadata": {"annotations": {}, "resourceVersion": "2"}, "spec": {}}
    assert unlike(wanted, found) == ["metadata.annotations"]
