"""Writes docs/models.md: what public models are found to be made of.

With ``--open`` models of tests/data/models are opened first, which takes about ten seconds of one
core for each, and what is found goes to tests/data/layouts.json: its diff is to be reviewed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
PAGE = _ROOT / "docs" / "models.md"
_LAYOUTS = _ROOT / "tests" / "data" / "layouts.json"
_COLUMNS = (
    "model",
    "class",
    "blocks",
    "kinds",
    "parameters",
    "quantized",
    "linears of a block that are quantized",
    "matrices of a block that stay exact",
    "beside",
)
_HEAD = f"""# Public models

Written by `scripts/models.py`; do not edit. What is found of public models by the facts in
`tests/data/models`: the `config.json`, and the names, shapes and dtypes of the tensors. No weight
is read for it. Configs are those that public sources hold; names and shapes are what transformers'
modules make of them, and how a release stores experts and draft layers (`tensors_from` of each
file): two were compared with a published index name by name, four with its number of bytes.
"Quantized" is the share of all parameters that the default recipe quantizes; the
rest are matrices that stay exact, embeddings, heads, norms, and parts that text does not go
through. "Beside" are tensors of no module, such as draft layers: they are copied as they are.

| {" | ".join(_COLUMNS)} |
|{"---|" * len(_COLUMNS)}
"""


def page(layouts: Mapping[str, Any]) -> str:
    """The page that says what was found."""
    rows = (f"| {' | '.join(_cells(model, found))} |\n" for model, found in layouts.items())
    return _HEAD + "".join(rows)


def _cells(model: str, found: Mapping[str, Any]) -> Iterator[str]:
    kinds = found["kinds"]
    blocks = sum(_count(kind["blocks"]) for kind in kinds)
    linears = [
        linear
        for kind in kinds
        for words in kind["inputs"]
        for linear in re.sub(r" \(.*\)", "", words).split()
    ]
    exact = [linear for kind in kinds for linear in kind["exact"]]
    yield model.replace("--", "/", 1)
    yield f"`{found['architecture']}`"
    yield str(blocks)
    yield str(len(kinds))
    yield _billions(found["parameters"])
    yield f"{found['quantized'] / found['parameters']:.1%}"
    yield _listed(linears)
    yield _listed(exact)
    yield f"{found['extra']:,} tensors" if found["extra"] else ""


def _listed(names: Sequence[str]) -> str:
    """The last part of each name, once."""
    last = (name.rpartition(".")[2] for name in names)
    return ", ".join(f"`{name}`" for name in dict.fromkeys(last))


def _count(runs: str) -> int:
    total = 0
    for run in runs.split(","):
        first, _, last = run.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} B"


def _open(names: Sequence[str]) -> None:
    """Opens models and records what is found; all of which the tensors are known by default."""
    sys.path.insert(0, str(_ROOT / "tests"))
    import public_models

    from quantlib.checkpoint.source import FolderSource
    from quantlib.models import open_model

    known = public_models.names()
    layouts = {name: found for name, found in _recorded().items() if name in known}
    for name in names or known:
        model = public_models.read(name)
        if not model.tensors:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = FolderSource(model.write(Path(folder) / "model"))
            layouts[name] = public_models.facts(*open_model(source))
        text = json.dumps(dict(sorted(layouts.items())), indent=1)
        _LAYOUTS.write_text(text + "\n", encoding="utf-8")


def _recorded() -> dict[str, Any]:
    if not _LAYOUTS.exists():
        return {}
    layouts: dict[str, Any] = json.loads(_LAYOUTS.read_text(encoding="utf-8"))
    return layouts


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--open", nargs="*", metavar="MODEL", help="open them; all by default")
    names = parser.parse_args().open
    if names is not None:
        _open(names)
    PAGE.write_text(page(_recorded()), encoding="utf-8")


if __name__ == "__main__":
    main()
