"""Imports point one way: counted over every import, those of functions and of types included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("quantlib", "components", "pipelines")
LEVELS = (
    ("budget", "errors", "registry", "section", "task_section", "verdicts"),
    ("grids",),
    ("quantization", "recipe", "scheme_rules", "schemes"),
    ("numbers",),
    ("runtime", "config"),
    ("store",),
    ("checkpoint",),
    ("formats",),
    ("models", "sources"),
    ("quantizers",),
    ("blockwise",),
    ("outlier_suppression",),
    (
        *(
            "checks",
            "evaluation",
            "planning",
            "publishing",
            "registries",
            "report",
            "search",
            "serving",
            "steps",
            "tasks",
            "text",
        ),
        *("telemetry", "watching"),
    ),
    ("output", "promotion"),
    ("manager", "conversion"),
    ("cli",),
    ("__main__",),
)
"""The rooms of quantlib from the lowest up: none knows one above it."""


@dataclass(frozen=True)
class Imports:
    """What a module imports.

    Attributes:
        anywhere: By full name, wherever it is imported.
        at_once: What runs when the module is imported.
    """

    anywhere: frozenset[str]
    at_once: frozenset[str]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, *, at_once: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (at_once and is_later(node)):
            yield from imported(node, at_once=at_once)


def is_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


@cache
def modules() -> Mapping[str, Imports]:
    """Every module of the packages by its name."""
    trees = {
        module_name(file): ast.parse(file.read_text(encoding="utf-8"))
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
    }
    return {
        name: Imports(
            frozenset(imported(tree, at_once=False)), frozenset(imported(tree, at_once=True))
        )
        for name, tree in trees.items()
    }


def own(names: frozenset[str]) -> set[str]:
    """The modules of the packages among imported names."""
    known = modules()
    found = (name if name in known else name.rpartition(".")[0] for name in names)
    return {name for name in found if name in known}


def packages_of(names: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_there_are_no_circles() -> None:
    graph = {name: own(imports.anywhere) for name, imports in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_rooms_know_none_above_them() -> None:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    for name, imports in modules().items():
        package, _, inside = name.partition(".")
        if package != "quantlib" or not inside:
            continue
        for other in own(imports.anywhere) - {"quantlib"}:
            room, seen = inside.partition(".")[0], other.split(".")[1]
            assert level[seen] <= level[room], f"{name} imports {other}, which lies above it"


@pytest.mark.parametrize(
    ("module", "known"),
    [
        ("recipe", {"quantization", "section", "task_section"}),
        ("task_section", {"section"}),
        ("quantization", {"budget", "scheme_rules", "schemes", "section"}),
        ("scheme_rules", {"schemes", "section"}),
        ("schemes", {"errors", "grids", "section"}),
        ("errors", {"verdicts"}),
        ("verdicts", set()),
        ("budget", set()),
        ("section", set()),
    ],
)
def test_a_recipe_is_data(module: str, known: set[str]) -> None:
    """Of the parts it knows types of numbers alone, by their names."""
    imported_modules = own(modules()[f"quantlib.{module}"].anywhere)
    assert imported_modules == {f"quantlib.{name}" for name in known}


def test_what_is_never_imported() -> None:
    for name, imports in modules().items():
        banned = {"kfp"} if name.partition(".")[0] == "quantlib" else {"torch", "transformers"}
        assert not packages_of(imports.anywhere) & banned, name


@pytest.mark.parametrize("package", ["components", "pipelines"])
def test_the_workflow_loads_no_torch(package: str) -> None:
    """Not by any module either that importing it runs; packages run before what lies in them."""
    reached: dict[str, str] = {}
    waiting = [(name, name) for name in modules() if name.partition(".")[0] == package]
    while waiting:
        name, path = waiting.pop()
        if name in reached:
            continue
        reached[name] = path
        assert not packages_of(modules()[name].at_once) & {"torch", "transformers"}, path
        parents = [".".join(name.split(".")[:end]) for end in range(1, name.count(".") + 1)]
        waiting += [
            (other, f"{path} > {other}") for other in (*own(modules()[name].at_once), *parents)
        ]
    assert {"components": "components.__main__", "pipelines": "pipelines.commands.run"}[
        package
    ] in (reached)
