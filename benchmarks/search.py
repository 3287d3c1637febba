"""Schemes searched for a budget beside one scheme for all, on the same windows: one table.

    python benchmarks/search.py
    python benchmarks/search.py --model gemma3 --budgets 4.5bits

Each row is a checkpoint that ``quantlib quantize`` makes by GPTQ of a model off the lattice of its
weights, judged on the held-out text that ships as benchmarks/schemes.py does it. auto-round's
AutoScheme chooses from the same schemes on the same windows, and what it chose is quantized alike:
it is the choices that are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from environments import python_of
from models import DOWNLOADS, off_lattice_folder
from processes import ROOT, judged, run
from scheme_tools import rules_of
from shipped_texts import CALIBRATION_TEXT

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.report.model import JSON_NAME, Report
from quantlib.steps.texts import windows_without_store

FOLDER = ROOT / "build" / "benchmarks" / "search"
CANDIDATES = {"W4A16:64": "W4A16G64", "W4A16:32": "W4A16G32", "W8A16:64": "W8A16G64"}
"""What is chosen from, and what auto-round calls it."""

HEADER = ("schemes", "bits per weight", "KL predicted", "KL", "perplexity", "user s")


def row(
    name: str,
    model: Path,
    options: list[str],
    rules: list[dict[str, Any]],
    samples: int,
    windows: int,
) -> tuple[str, ...]:
    """Makes and judges one checkpoint.

    Args:
        name: What the table calls it.
        model: The original.
        options: Of ``quantlib quantize``.
        rules: Of its recipe, for linears that differ from the rest.
        samples: Calibration windows of 512 tokens.
        windows: Held-out ones.
    """
    folder = FOLDER / model.name / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    asked = {"quantization": {"schemes": rules}, "calibration": CALIBRATION_TEXT}
    recipe.write_text(yaml.safe_dump(asked))
    output = folder / "checkpoint"
    command = [sys.executable, "-m", "quantlib", "quantize", "--recipe", str(recipe)]
    command += ["--model", str(model), "--output", str(output), "--overwrite"]
    command += ["--format", "compressed-tensors", "--num-samples", str(samples), *options]
    usage = run(command, folder / "log", {"QUANTLIB_DRY_LOAD": "never"})
    if usage.status:
        raise SystemExit(f"{name}: failed: {folder / 'log'}")
    report = Report.from_json((output / JSON_NAME).read_bytes())
    search, figures = report.search, judged(model, output, windows)
    parts = [part for part in report.sizes.parts if part.linears]
    bits = 8 * sum(part.bytes for part in parts) / sum(part.weights for part in parts)
    if search:  # which also counts what stays exact
        bits = search.chosen.bits
    return (
        name,
        f"{bits:.2f}",
        f"{search.chosen.kl:.3f}" if search else "",
        f"{figures['kl_mean']:.4f} ± {figures['kl_standard_error']:.4f}",
        f"{figures['perplexity_original']:.2f} -> {figures['perplexity_quantized']:.2f}",
        f"{usage.user_seconds:.0f}",
    )


def auto_scheme(model: Path, bits: float, samples: int) -> list[dict[str, Any]]:
    """What auto-round chooses, as rules of a recipe.

    Args:
        model: The original.
        bits: Per weight, scales counted.
        samples: Calibration windows of 512 tokens.
    """
    folder = FOLDER / model.name / f"AutoScheme-{bits}"
    folder.mkdir(parents=True, exist_ok=True)
    tokens, chosen = folder / "tokens.npy", folder / "chosen.json"
    section = parse_recipe({"calibration": CALIBRATION_TEXT | {"num_samples": samples}}).calibration
    np.save(tokens, windows_without_store(section, FolderSource(model)).tokens)
    job = {"model": str(model), "tokens": str(tokens), "output": str(chosen), "bits": bits}
    (folder / "job").write_text(json.dumps(job | {"options": list(CANDIDATES.values())}))
    script = Path(__file__).with_name("auto_scheme_peer.py")
    command = [str(python_of("auto-round")), str(script), str(folder / "job")]
    usage = run(command, folder / "log")
    if usage.status:
        raise SystemExit(f"AutoScheme: failed: {folder / 'log'}")
    print(f"AutoScheme chose in {usage.user_seconds:.0f} user s", flush=True)
    return rules_of(json.loads(chosen.read_text()))


def main() -> None:
    """Parses the arguments, makes the rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(DOWNLOADS), default="smollm2")
    parser.add_argument("--group-sizes", nargs="*", type=int, default=[64, 32])
    parser.add_argument("--budgets", nargs="*", default=["4.5bits", "5bits"])
    parser.add_argument("--auto-scheme", nargs="*", type=float, default=[4.5], metavar="BITS")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    model = off_lattice_folder(arguments.model)
    asked: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
        f"W4A16 in groups of {size}": (["--group-size", str(size)], [])
        for size in arguments.group_sizes
    }
    candidates = ["--candidates", ",".join(CANDIDATES)]
    for budget in arguments.budgets:
        asked[f"searched for {budget}"] = (["--budget", budget, *candidates], [])
    for bits in arguments.auto_scheme:
        rules = auto_scheme(model, bits, arguments.samples)
        asked[f"AutoScheme for {bits} bits"] = (["--group-size", "64"], rules)
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for name, (options, rules) in asked.items():
        cells = row(name, model, options, rules, arguments.samples, arguments.windows)
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    (FOLDER / f"{model.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
