"""Writes docs/families.md: which models of transformers can be walked, and whether bit for bit.

A tiny random model of every family that one can be made of (scripts/vllm_models.py) is computed
whole by transformers and walked block by block, in float32 on a CPU; then walked again from every
block on, with what the walk before kept there. Takes some minutes of one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from vllm_models import model_names, write

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.models import open_model
from quantlib.models.boundary import HIDDEN, root_of
from quantlib.models.streamed import StreamedModel

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
_TOKENS = torch.randint(3, 200, (2, 48), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Row:
    """What was found of one model.

    Attributes:
        name: Its model type, or what the tests call it.
        architecture: Its class.
        kinds: Different blocks.
        folded: Shared inputs that scales can be folded before, of all.
        difference: The largest of the hidden states after any block, over the largest of them.
        again: The same where the walk starts at each of the later blocks.
    """

    name: str
    architecture: str
    kinds: int
    folded: str
    difference: float
    again: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        return (
            f"`{self.name}`",
            f"`{self.architecture}`",
            str(self.kinds),
            self.folded,
            _said(self.difference),
            _said(self.again),
        )


def _said(difference: float) -> str:
    return "bit for bit" if difference == 0 else f"to {difference:.0e}"


@torch.no_grad()
def compare(name: str, folder: Path) -> Row:
    """Walks a model and compares with transformers.

    Raises:
        InvalidInputError: It cannot be walked.
    """
    checkpoint, adapter = open_model(FolderSource(folder))
    layout = adapter.layout
    if layout.obstacles:
        raise InvalidInputError(Problem(each.where, each.what) for each in layout.obstacles)

    def stream() -> StreamedModel:
        model = adapter.load_model(checkpoint, torch.device("cpu"))
        model.dtype = torch.float32
        return model

    expected = _whole(folder, stream().reader.skeleton.prefix.removesuffix("."))

    boundaries = list(_walked(stream(), range(layout.blocks), None))
    found = [_hidden(boundary) for boundary in boundaries]
    again = 0.0
    for start in range(1, layout.blocks):
        states = _walked(stream(), range(start, layout.blocks), boundaries[start - 1])
        again = max(again, _difference(list(map(_hidden, states)), expected[start:]))
    inputs = [shared for kind in layout.kinds for shared in kind.inputs]
    folded = sum(shared.producer is not None for shared in inputs)
    return Row(
        name,
        layout.architecture,
        len(layout.kinds),
        f"{folded} of {len(inputs)}",
        _difference(found, expected),
        again,
    )


def _walked(
    model: StreamedModel, blocks: range, boundary: dict[str, Tensor] | None
) -> Iterator[dict[str, Tensor]]:
    walk = model.walk(_TOKENS, blocks, boundary)
    for block in walk:
        walk.pass_through(block)
        yield walk.boundary()


def _whole(folder: Path, prefix: str) -> list[Tensor]:
    config = transformers.AutoConfig.from_pretrained(folder)
    settings: dict[str, Any] = {"dtype": torch.float32, "experts_implementation": "eager"}
    if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        settings["attn_implementation"] = "eager"
    model_class = getattr(transformers, config.architectures[0])
    model = model_class.from_pretrained(folder, **settings).eval()
    blocks = model.get_submodule(prefix)
    assert isinstance(blocks, nn.ModuleList)
    states: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(
            lambda _, __, y: states.append((y[0] if isinstance(y, (tuple, list)) else y).clone())
        )
    model.base_model(input_ids=_TOKENS, use_cache=False)
    return states


def _hidden(boundary: dict[str, Tensor]) -> Tensor:
    return next(tensor for name, tensor in boundary.items() if root_of(name) == HIDDEN)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    largest = max(float(state.abs().max()) for state in expected)
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest


def page(rows: Sequence[Row], refused: Sequence[tuple[str, str]]) -> str:
    """The page."""
    exact = sum(row.difference == 0 and row.again == 0 for row in rows)
    lines = [
        "# Families",
        "",
        "<!-- Written by `python scripts/families.py`. -->",
        "",
        f"Tiny random models of {len(rows)} families of transformers {transformers.__version__},",
        "walked block by block and compared with the whole model in float32 on a CPU (torch",
        f"{torch.__version__.partition('+')[0]}): {exact} bit for bit, from every block on too.",
        "*Folds*: of the inputs that linears share, before how many scales can be folded",
        "(SmoothQuant, AWQ). What vLLM serves of them is another matter:",
        "[architecture.md](architecture.md) says how its names are known.",
        "",
        "| model | class | kinds of blocks | folds | hidden states | started at every block |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row.cells)} |" for row in rows),
        "",
    ]
    if refused:
        lines += ["Refused, in these words:", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in refused]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Compares all models, or those that are named, and writes the page of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; the page is written without any only")
    names = parser.parse_args().names
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows, refused = [], []
    for name in names or model_names():
        with tempfile.TemporaryDirectory() as temporary:
            try:
                folder = write(name, Path(temporary) / "model")
            except Exception as error:
                print(f"{name}: no tiny model: {type(error).__name__}", file=sys.stderr)
                continue
            try:
                rows.append(compare(name, folder))
            except InvalidInputError as error:
                refused.append((name, "; ".join(map(str, error.problems[:2]))[:300]))
            except Exception as error:
                refused.append((name, f"{type(error).__name__}: {error}"[:300]))
        print(rows[-1].cells if rows and rows[-1].name == name else refused[-1], flush=True)
    text = page(rows, refused)
    if not names:
        PAGE.write_text(text, encoding="utf-8")
    print(f"{len(rows)} walked, {len(refused)} refused")


if __name__ == "__main__":
    main()
