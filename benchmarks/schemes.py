"""What each scheme costs a model, by method and by tool: one table.

    python benchmarks/schemes.py
    python benchmarks/schemes.py --schemes NVFP4 MXFP4 --tools quantlib llm-compressor

Every cell of the table is a checkpoint that a tool makes of the same model on the same calibration
windows, in processes of its own on one thread, and that one evaluator judges on the same held-out
text. What was measured lies in build/benchmarks/schemes, a file for each cell: a command that is
given again goes on where it stood. At the end it writes schemes.json and schemes.md there, of all
cells that are known.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from environments import PACKAGES, python_of
from models import DOWNLOADS, off_lattice_folder
from processes import ROOT, Usage, judged, last_line, run
from scheme_table import Cell, Measured, markdown
from scheme_tools import METHODS, QUANTLIB, can, job_of, recipe_of
from shipped_texts import CALIBRATION_TEXT

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.schemes import SCHEMES
from quantlib.steps.texts import windows_without_store

FOLDER = ROOT / "build" / "benchmarks" / "schemes"


@dataclass(frozen=True)
class Settings:
    """What decides the figures of a cell besides the cell.

    Attributes:
        samples: Calibration windows.
        sequence: Tokens of a window.
        windows: Held-out windows of 512 tokens.
    """

    samples: int
    sequence: int
    windows: int


def quantlib_command(cell: Cell, model: Path, output: Path, settings: Settings) -> list[str]:
    """Quantizes with ``quantlib quantize``."""
    recipe = recipe_of(cell.scheme, cell.method) | {"calibration": calibration(cell, settings)}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "quantlib", "quantize", "--recipe", str(path)]
    return [*command, "--model", str(model), "--output", str(output), "--device", "cpu"]


def calibration(cell: Cell, settings: Settings) -> dict[str, Any]:
    """The section of a recipe."""
    samples, sequence = settings.samples, settings.sequence
    windows = {"num_samples": samples, "sequence_length": sequence, "seed": cell.seed}
    return CALIBRATION_TEXT | windows


def peer_command(cell: Cell, model: Path, output: Path, settings: Settings) -> list[str]:
    """Quantizes with another tool, on the same windows."""
    tokens = output.with_suffix(".npy")
    section = parse_recipe({"calibration": calibration(cell, settings)}).calibration
    np.save(tokens, windows_without_store(section, FolderSource(model)).tokens)
    places = {"model": str(model), "tokens": str(tokens), "output": str(output)}
    job = places | job_of(cell.tool, cell.scheme, cell.method)
    path = output.with_suffix(".job")
    path.write_text(json.dumps(job))
    script = Path(__file__).with_name(f"{cell.tool.replace('-', '_')}_peer.py")
    return [str(python_of(cell.tool)), str(script), str(path)]


def bits_per_weight(checkpoint: Path, original: Path) -> float | None:
    """Bits that the quantized linears take, scales counted; None where none is stored as codes."""
    exact = Checkpoint.open(FolderSource(original)).tensors
    stored = Checkpoint.open(FolderSource(checkpoint)).tensors
    linears = {name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")}
    if not linears:
        return None
    modules = {name.removesuffix("weight") for name in linears}
    taken = sum(
        info.bytes
        for name, info in stored.items()
        if name.rpartition(".")[0] + "." in modules and not name.endswith(".bias")
    )
    return 8 * taken / sum(exact[name].elements for name in linears)


def judge(cell: Cell, model: Path, output: Path, settings: Settings) -> Mapping[str, float]:
    """A checkpoint against its original, in a process of its own."""
    more = []
    if cell.tool == "modelopt":
        more = ["--activations", SCHEMES[cell.scheme]["activations"]]
    return judged(model, output, settings.windows, *more)


def measure(cell: Cell, model: Path, settings: Settings) -> Measured:
    """Makes the checkpoint of a cell, judges it, and removes it."""
    output = path_of(cell, settings).with_suffix("")  # stays until it was judged
    output.parent.mkdir(parents=True, exist_ok=True)
    made = output.with_suffix(".made")
    if not made.exists():
        shutil.rmtree(output, ignore_errors=True)
        command_of = quantlib_command if cell.tool == QUANTLIB else peer_command
        log = output.with_suffix(".txt")
        # The others do not load what they made with vLLM.
        usage = run(command_of(cell, model, output, settings), log, {"QUANTLIB_DRY_LOAD": "never"})
        if usage.status:
            return Measured(cell, failure=last_line(log))
        made.write_text(json.dumps(asdict(usage)))
    figures = judge(cell, model, output, settings)
    bits = bits_per_weight(output, model)
    usage = Usage(**json.loads(made.read_text()))
    made.unlink()
    shutil.rmtree(output)
    return Measured(
        cell,
        user_seconds=usage.user_seconds,
        peak_mib=usage.peak_mib,
        bits=bits,
        perplexity=figures["perplexity_quantized"],
        original_perplexity=figures["perplexity_original"],
        kl=figures["kl_mean"],
        kl_error=figures["kl_standard_error"],
        top1=figures["top1_agreement"],
    )


def path_of(cell: Cell, settings: Settings) -> Path:
    """Where the figures of a cell are kept."""
    folder = f"{settings.samples}x{settings.sequence}-{settings.windows}"
    return FOLDER / folder / f"{cell.slug}.json"


def known(settings: Settings) -> Iterator[Measured]:
    """The cells that were measured."""
    for path in sorted(path_of(Cell("", "", "", ""), settings).parent.glob("*.json")):
        yield Measured.from_json(json.loads(path.read_text()))


def main() -> None:
    """Measures what is asked for and not known yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=DOWNLOADS, default=list(DOWNLOADS))
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    tools = [QUANTLIB, *(tool for tool in PACKAGES if tool != "hqq")]
    parser.add_argument("--tools", nargs="+", choices=tools, default=tools)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of calibration windows")
    parser.add_argument("--samples", type=int, default=16, help="calibration windows")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a calibration window")
    parser.add_argument("--windows", type=int, default=8, help="of held-out text, 512 tokens each")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many")
    parser.add_argument("--again", action="store_true", help="measure known cells again")
    asked = parser.parse_args()
    settings = Settings(asked.samples, asked.sequence, asked.windows)
    started = time.monotonic()
    every = product(asked.models, asked.seeds, asked.schemes, asked.tools, asked.methods)
    for name, seed, scheme, tool, method in every:
        cell = Cell(name, scheme, tool, method, seed)
        path = path_of(cell, settings)
        if not can(tool, scheme, method) or (path.exists() and not asked.again):
            continue
        if asked.minutes is not None and time.monotonic() - started > 60 * asked.minutes:
            break
        print(f"{cell.slug}: ", end="", flush=True)
        measured = measure(cell, off_lattice_folder(name), settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(measured), indent=2))
        print(measured.words, flush=True)
    rows = list(known(settings))
    (FOLDER / "schemes.json").write_text(json.dumps([asdict(row) for row in rows], indent=2))
    (FOLDER / "schemes.md").write_text(table := markdown(rows))
    print(table)


if __name__ == "__main__":
    main()
