"""``quantlib inspect``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from quantlib.cli.model_argument import model_argument
from quantlib.cli.result_options import print_json, progress, result_options

if TYPE_CHECKING:
    from quantlib.planning.inspection import Inspection, KindOfBlock

_EXAMPLES = """\b
Examples:
  quantlib inspect ./Llama-3.1-8B
  quantlib inspect hf://org/Llama@main --json
  quantlib inspect ./model.gguf
"""


@click.command(epilog=_EXAMPLES)
@model_argument
@result_options
def inspect(model: str, as_json: bool, quiet: bool) -> None:
    """Show what MODEL is made of: blocks, linears, experts, and what would be quantized.

    Only the config and the headers are read, of a model of any size: a folder, a .gguf file,
    hf://org/name@rev, or s3://bucket/prefix.
    """
    from quantlib.planning.inspection import inspect_model
    from quantlib.sources.opening import open_headers

    with progress(quiet=quiet):
        found = inspect_model(open_headers(model))
    if as_json:
        print_json("inspect", asdict(found))
        return
    for line in _lines(found):
        click.echo(line)


def _lines(found: Inspection) -> Iterator[str]:
    from quantlib.checks.model import WITHOUT_TEXT
    from quantlib.report.text import plural

    named = found.architecture or "no architecture"
    yield f"{named} (model_type {found.model_type})"
    yield f"{_count(found.parameters)} parameters, {_bytes(found.bytes)}, {found.blocks} blocks"
    if found.stored:
        yield f"quantized already: {found.stored}"
    if found.walked:
        yield "transformers computes it: every method works"
    for obstacle in found.obstacles:
        yield f"no text can be run through it: {obstacle}"
    if not found.walked:
        yield f"seen in names and shapes; what works without text: {WITHOUT_TEXT}"
    for kind in found.kinds:
        yield ""
        yield from _kind_lines(kind)
    yield ""
    yield "outside of the blocks, exact:"
    rows = [
        (part.name, _count(part.parameters), plural(part.tensors, "tensor"), part.why)
        for part in found.outside
    ]
    yield from _table(rows)
    yield ""
    share = found.quantized_parameters / found.parameters
    yield f"would be quantized: {_count(found.quantized_parameters)} parameters, {share:.1%}"
    for scheme, size in found.sizes.items():
        yield f"about {_bytes(size)} in {scheme}"
    yield from _vllm_lines(found)


def _kind_lines(kind: KindOfBlock) -> Iterator[str]:
    what = f"block {kind.blocks}" if kind.count == 1 else f"blocks {kind.blocks} ({kind.count})"
    yield f"{what}: {_count(kind.parameters)} parameters each"
    rows = []
    for shared in kind.inputs:
        outputs = " + ".join(map(str, shared.outputs))
        of_each = f"each of {shared.experts} experts" if shared.experts else ""
        rows.append((", ".join(shared.linears), f"{shared.inputs} -> {outputs}", of_each))
    yield from _table(rows)
    by_reason: dict[str, list[str]] = {}
    for linear, why in kind.exact.items():
        by_reason.setdefault(why, []).append(linear)
    for why, linears in by_reason.items():
        yield f"  exact: {', '.join(linears)}: {why}"


def _vllm_lines(found: Inspection) -> Iterator[str]:
    vllm = found.vllm
    if vllm is None:
        return
    if vllm.served_by is None:
        yield f"vLLM {vllm.version} is not known to serve {found.architecture or 'it'}"
        return
    by = vllm.served_by
    how = f"by modules of transformers ({by})" if by.startswith("Transformers") else f"by {by}"
    yield f"vLLM {vllm.version} or later serves it {how}"
    fused = [
        f"{name.rpartition('.')[2]} = {' + '.join(_last(parts))}"
        for name, parts in vllm.fused.items()
    ]
    if fused:
        yield f"  computed as one, so of one scheme: {'; '.join(dict.fromkeys(fused))}"
    for name, others in vllm.spelled.items():
        yield f"  {name} is asked for as {', '.join(others)}"


def _last(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns side by side."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()


def _count(number: int) -> str:
    """6.7 B, 494 M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"
