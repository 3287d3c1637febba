"""Writes docs/reference from the recipe's schema and the commands, and tables of docs/gate.md.

``--check`` only compares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from quantlib.cli import COMMANDS, command_of
from quantlib.evaluation import limits
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import AskedRecipe, Section

DOCS = Path(__file__).resolve().parent.parent / "docs"
_NOTE = "<!-- Written by `python scripts/reference.py`; `make quality` compares. -->"
_WIDTH = 96


def recipe_page() -> str:
    """Every field of a recipe, and the options of every method and suppressor."""
    lines = [
        "# Recipe reference",
        "",
        _NOTE,
        "",
        "A recipe is a YAML or JSON file. Every field has a default, unknown keys are refused, and",
        "`quantlib validate-recipe FILE` prints all faults at once.",
        "",
        *_section(AskedRecipe, ""),
    ]
    for title, path, registry in (
        ("Options of the methods", "quantization.options", quantizer_registry),
        (
            "Options of outlier suppression",
            "outlier_suppression.options",
            outlier_suppression_registry,
        ),
    ):
        lines += [f"## {title}", ""]
        for name in registry:
            options = registry.get(name).options_type
            lines += [f"### `{path}` of `{name}`", ""]
            lines += _table(options, path) if options.model_fields else ["None."]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    yield f"## `{path}`" if path else "## Top level"
    yield ""
    if path:
        yield " ".join((model.__doc__ or "").split())
        yield ""
    yield from _table(model, path)
    yield ""
    for name, field in model.model_fields.items():
        inner = _inner_section(field.annotation)
        if inner is not None:
            yield from _section(inner, f"{path}.{name}" if path else name)


def _inner_section(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _table(model: type[BaseModel], path: str) -> Iterator[str]:
    schema = model.model_json_schema()
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for name, entry in schema["properties"].items():
        field = model.model_fields[name]
        if _inner_section(field.annotation) is not None:
            full = f"{path}.{name}" if path else name
            kind, default = "section", "none" if field.default is None else f"see `{full}`"
            if isinstance(field.default, str):
                kind, default = f"`{field.default}` or section", f"`{field.default}`"
            if entry.get("type") == "array":
                kind, default = f"list of `{full}`", "none"
        else:
            kind = _kind(entry)
            default = "" if field.is_required() else f"`{_shown(entry.get('default'))}`"
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{name}` | {kind} | {default} | {text} |"


def _kind(entry: Mapping[str, Any]) -> str:
    if "anyOf" in entry:
        kinds = [_kind(one) for one in entry["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    kind = str(entry.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(entry.get('items', {}))}"
    bounds = [
        f"{sign} {entry[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in entry
    ]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def cli_page() -> str:
    """The help of every command."""
    lines = ["# Command line reference", "", _NOTE, ""]
    lines += [
        "`quantlib` and `python -m quantlib` are the same. Exit codes: 0 done, 2 invalid input,"
    ]
    lines += ["3 to 5 refused by the gate (docs/gate.md), 1 anything else, 130 interrupted.", ""]
    for name in sorted(COMMANDS):
        command = command_of(name)
        context = click.Context(command, info_name=f"quantlib {name}", max_content_width=_WIDTH)
        context.terminal_width = _WIDTH
        lines += [f"## quantlib {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def gate_page() -> str:
    """``docs/gate.md`` as it is, with the tables that follow from the code."""
    page = (DOCS / "gate.md").read_text(encoding="utf-8")
    for name, table in (("limits", _limits()), ("factors", _factors())):
        before, mark, rest = page.partition(f"<!-- {name}: ")
        note, _, rest = rest.partition("\n")
        _, end, after = rest.partition(f"<!-- {name} end -->")
        page = "\n".join([before + mark + note, *table, end + after])
    return page


def _limits() -> Iterator[str]:
    yield "| scheme | original | mean KL divergence, nats | perplexity rises by | same top token |"
    yield "|---|---|---|---|---|"
    for cap in limits.CAPS:
        yield (
            f"| {cap.precision} | {limits.size_in_words(cap.parameters)} | {cap.kl_mean} | "
            f"{cap.perplexity_increase:.0%} | {cap.top1_agreement:.0%} |"
        )


def _factors() -> Iterator[str]:
    yield "| method and scheme | times plain rounding |"
    yield "|---|---|"
    yield (f"| looks at text, and rounds weights alone, to fewer than 8 bits | {limits.FACTOR:g} |")
    yield f"| any other | {limits.LOOSE_FACTOR:g}, of {limits.LEAST_ROUNDING:g} nats at least |"


def main() -> int:
    """Writes or compares the pages; 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    pages = {
        "reference/recipe.md": recipe_page(),
        "reference/cli.md": cli_page(),
        "gate.md": gate_page(),
    }
    outdated = []
    for name, text in pages.items():
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and outdated:
        print(f"out of date: {', '.join(outdated)}; run make style", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
