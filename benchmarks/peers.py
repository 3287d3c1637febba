"""Our quantization beside that of llm-compressor and hqq: same model, windows and held-out text.

    make benchmark                      # or: python benchmarks/peers.py
    python benchmarks/peers.py --only gptq

Prints a table per comparison and writes build/benchmarks/peers.json. Every job runs in processes of
its own with OMP_NUM_THREADS=1; CPU seconds and peak memory are those that the kernel accounts to
them. The others are installed into environments of their own, build/benchmarks/environments.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from deeper import write_deeper_model
from environments import python_of
from models import model_folder
from processes import ROOT, run
from rich.console import Console
from rich.table import Table
from shipped_texts import CALIBRATION_TEXT

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.steps.texts import windows_without_store

FOLDER = ROOT / "build" / "benchmarks"
CALIBRATION = CALIBRATION_TEXT | {"num_samples": 32, "sequence_length": 512}
W4 = {"weights": {"bits": 4, "group_size": 64, "symmetric": True}}
W8A8 = {"weights": {"bits": 8, "group_size": -1}, "activations": "int8"}


@dataclass
class Row:
    """One line of a table; None where it was not measured."""

    name: str
    cpu_seconds: float | None = None
    peak_mib: int | None = None
    perplexity: float | None = None
    kl_mean: float | None = None
    top1: float | None = None


def slug_of(name: str) -> str:
    """A row's name as a file name."""
    return name.replace(" ", "-").replace(",", "")


def measured(name: str, command: list[str]) -> Row:
    """Runs a command and accounts its CPU seconds and the memory of its largest process."""
    print(f"running {name}", flush=True)
    log = FOLDER / "logs" / f"{slug_of(name)}.txt"
    usage = run(command, log)
    if usage.status:
        sys.exit(f"{name} failed, see {log}")
    return Row(name, usage.user_seconds, usage.peak_mib)


def write_recipe(name: str, data: dict[str, Any]) -> Path:
    """A recipe file with the benchmark's calibration."""
    path = FOLDER / "recipes" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"calibration": CALIBRATION} | data))
    return path


def quantlib_row(name: str, model: Path, data: dict[str, Any], *options: str) -> Row:
    """Quantizes with ``quantlib quantize``, from nothing."""
    slug = slug_of(name)
    output = FOLDER / "out" / slug
    shutil.rmtree(output, ignore_errors=True)
    recipe = write_recipe(slug, data)
    command = [sys.executable, "-m", "quantlib", "quantize", "--recipe", str(recipe)]
    command += ["--model", str(model), "--output", str(output), "--device", "cpu"]
    return measured(name, [*command, *options])


def peer_row(
    name: str,
    model: Path,
    scheme: str,
    samples: int | None = None,
    tool: str = "llm-compressor",
) -> Row:
    """Quantizes with another tool."""
    slug = slug_of(name)
    output = FOLDER / "out" / slug
    shutil.rmtree(output, ignore_errors=True)
    tokens = FOLDER / f"{slug}.npy"
    calibration = CALIBRATION | ({"num_samples": samples} if samples else {})
    recipe = parse_recipe({"calibration": calibration})
    np.save(tokens, windows_without_store(recipe.calibration, FolderSource(model)).tokens)
    job = {
        "model": str(model),
        "tokens": str(tokens),
        "output": str(output),
        "scheme": scheme,
        "alpha": 0.8,
    }
    path = FOLDER / f"{slug}.json"
    path.write_text(json.dumps(job))
    script = Path(__file__).with_name(f"{tool.replace('-', '_')}_peer.py")
    return measured(name, [str(python_of(tool)), str(script), str(path)])


def pipeline_row(name: str, model: Path, data: dict[str, Any]) -> Row:
    """Runs the whole pipeline, vLLM's validation included, from nothing.

    The memory is that of the largest range worker: what serves a model holds it whole.
    """
    folder = FOLDER / "pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = write_recipe("pipeline", data)
    command = [sys.executable, "-m", "quantlib", "run", "--recipe", str(recipe)]
    command += ["--model", str(model)]
    command += ["--store", str(folder / "store"), "--run-dir", str(folder / "run")]
    command += ["--publish-to", str(folder / "published"), "--device", "cpu"]
    row = measured(name, command)
    runs = (folder / "store" / "steps" / "quantize").glob("*/run.json")
    row.peak_mib = max(json.loads(path.read_text())["peak_mib"] for path in runs)
    return row


def judge(rows: list[Row], model: Path) -> None:
    """Compares each row's checkpoint with the original.

    In a process of its own: those measured after it would inherit this one's peak memory.
    """
    print("judging", flush=True)
    folders = {row.name: FOLDER / "out" / slug_of(row.name) for row in rows}
    judged = [row for row in rows if folders[row.name].exists()]
    command = [sys.executable, str(Path(__file__).with_name("judging.py")), str(model)]
    command += [str(folders[row.name]) for row in judged]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for row, line in zip(judged, output.splitlines(), strict=True):
        figures = json.loads(line)
        row.perplexity = figures["perplexity_quantized"]
        row.kl_mean = figures["kl_mean"]
        row.top1 = figures["top1_agreement"]


def compare_gptq(model: Path) -> list[Row]:
    """W4A16, group 64, symmetric GPTQ."""
    rows = [
        peer_row("llm-compressor GPTQ", model, "gptq"),
        quantlib_row("quantlib GPTQ, 1 range", model, {"quantization": W4}),
        quantlib_row("quantlib GPTQ, 3 ranges", model, {"quantization": W4, "num_ranges": 3}),
        quantlib_row(
            "quantlib GPTQ, max scales",
            model,
            {"quantization": W4 | {"options": {"scale_search": "minmax"}}},
        ),
        pipeline_row("quantlib pipeline, 3 ranges", model, {"quantization": W4, "num_ranges": 3}),
    ]
    judge(rows, model)
    return rows


def compare_awq(model: Path) -> list[Row]:
    """W4A16, group 64, AWQ with and without zero points."""
    rows = []
    for kind, symmetric in (("symmetric", True), ("asymmetric", False)):
        ours = {"method": "awq", "weights": W4["weights"] | {"symmetric": symmetric}}
        rows += [
            peer_row(f"llm-compressor AWQ, {kind}", model, f"awq-{kind}"),
            quantlib_row(f"quantlib AWQ, {kind}", model, {"quantization": ours}),
        ]
    judge(rows, model)
    return rows


def compare_w8a8(model: Path) -> list[Row]:
    """W8A8 with SmoothQuant; activations dynamic per token unless said."""

    def ours(name: str, activations: str, **options: Any) -> Row:
        recipe = {
            "quantization": W8A8 | {"activations": activations},
            "outlier_suppression": {"method": "smooth_quant", "options": options},
        }
        return quantlib_row(f"quantlib W8A8 SmoothQuant{name}", model, recipe)

    every_pair = {"alpha": "auto", "pairs": ["norms", "value_output", "up_down"]}
    rows = [
        peer_row("llm-compressor W8A8 SmoothQuant", model, "w8a8"),
        ours("", "int8"),
        ours(", alpha auto", "int8", alpha="auto"),
        ours(", static", "int8-static"),
        ours(", static, auto, all pairs", "int8-static", **every_pair),
    ]
    judge(rows, model)
    return rows


def compare_hqq(model: Path) -> list[Row]:
    """W4A16, group 64, asymmetric HQQ."""
    ours = {"method": "hqq", "weights": W4["weights"] | {"symmetric": False}}
    rows = [
        peer_row("hqq package", model, "hqq", tool="hqq"),
        quantlib_row("quantlib HQQ", model, {"quantization": ours}),
        quantlib_row(
            "quantlib HQQ, no calibration",
            model,
            {"quantization": ours | {"options": {"importance": "none"}}},
        ),
    ]
    judge(rows, model)
    return rows


def compare_minmax(model: Path) -> list[Row]:
    """W4A16, group 64, rounding to nearest with and without zero points."""
    rows = []
    for kind, symmetric in (("symmetric", True), ("asymmetric", False)):
        ours = {"method": "minmax", "weights": W4["weights"] | {"symmetric": symmetric}}
        rows += [
            peer_row(f"llm-compressor rounding, {kind}", model, f"rounding-{kind}"),
            quantlib_row(f"quantlib MinMax, {kind}", model, {"quantization": ours}),
        ]
    judge(rows, model)
    return rows


def compare_depth(model: Path) -> list[Row]:
    """Memory on SmolLM2 and on a model four times as deep, with 4 calibration windows."""
    deep = FOLDER / "deep"
    if not (deep / "config.json").exists():
        write_deeper_model(model, deep, times=4)
    few = {"quantization": W4, "calibration": CALIBRATION | {"num_samples": 4}}
    return [
        peer_row("llm-compressor, 30 blocks", model, "gptq", samples=4),
        peer_row("llm-compressor, 120 blocks", deep, "gptq", samples=4),
        quantlib_row("quantlib, 30 blocks", model, few),
        quantlib_row("quantlib, 120 blocks", deep, few),
    ]


COMPARISONS: dict[str, Callable[[Path], list[Row]]] = {
    "gptq": compare_gptq,
    "awq": compare_awq,
    "w8a8": compare_w8a8,
    "hqq": compare_hqq,
    "minmax": compare_minmax,
    "depth": compare_depth,
}


def show(title: str, rows: list[Row]) -> None:
    """Prints a table."""
    table = Table(title=title)
    for column in ("", "user CPU s", "peak MiB", "perplexity", "mean KL", "top-1"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        values = [row.perplexity, row.kl_mean, row.top1]
        formats = ("{:.2f}", "{:.4f}", "{:.3f}")
        table.add_row(
            row.name,
            str(row.cpu_seconds),
            str(row.peak_mib),
            *("" if v is None else f.format(v) for v, f in zip(values, formats, strict=True)),
        )
    Console(width=110).print(table)


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=COMPARISONS, help="one comparison")
    only = parser.parse_args().only
    model = model_folder("smollm2")
    path = FOLDER / "peers.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, compare in COMPARISONS.items():
        if only in (None, name):
            rows = compare(model)
            results[name] = [asdict(row) for row in rows]
            path.write_text(json.dumps(results, indent=2))
            show((compare.__doc__ or name).rstrip("."), rows)


if __name__ == "__main__":
    main()
