"""Peak memory of the steps that compute, measured and as `quantlib plan` says.

    python benchmarks/memory.py

Two models: SmolLM2-135M, and a random Llama eight times larger. Every step is a process of its own.
Its peak is what a container would be charged with: memory of it and of all that it starts, pages
that several share counted once. Takes about fifteen minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from rich.console import Console
from rich.table import Table
from shipped_texts import CALIBRATION_TEXT, EVALUATION_TEXT
from smollm2 import download_smollm2

from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.group_size import settle
from quantlib.checks.recipe import parse_recipe
from quantlib.models import open_model
from quantlib.planning import estimate_run, find_hardware
from quantlib.store import LocalStore, Receipt

FOLDER = ROOT / "build" / "benchmarks" / "memory"
SEQUENCE = 512
LARGE = {"hidden_size": 1728, "intermediate_size": 4608, "num_hidden_layers": 32}
# The benchmark itself stays small: a process inherits the peak of the one that starts it.
_MAKE_LARGE = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
config = AutoConfig.from_pretrained(sys.argv[1])
config.update({sizes} | {{"num_attention_heads": 27, "num_key_value_heads": 9, "head_dim": 64}})
AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(sys.argv[2])
"""
_STEPS = """
import sys
from pathlib import Path
from quantlib.checks.recipe import recipe_from_text
from quantlib.steps.calibrate import calibrate
from quantlib.steps.fetch import fetch
from quantlib.steps.merge import merge
from quantlib.steps.plan import plan
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.steps.texts import bring_texts
from quantlib.steps.validate import validate
from quantlib.store import LocalStore, Receipt

step, folder, recipe, source, blocks = sys.argv[1:]
store, recipe, folder = LocalStore(Path(folder) / "store"), recipe_from_text(recipe), Path(folder)


def made(name):
    return Receipt.from_json((folder / name).read_bytes())


match step:
    case "fetch":
        receipt = fetch(store, source)
    case "plan":
        receipt = plan(store, recipe, made("fetch"), bring_texts(store, recipe), 0)
    case "calibrate":
        receipt = calibrate(store, recipe, made("fetch"), made("plan"), "cpu")
    case "smooth":
        receipt = smooth(store, recipe, made("fetch"), made("calibrate"))
    case "quantize":
        receipt = quantize(
            store, recipe, blocks, made("fetch"), made("calibrate"), made("smooth"), "cpu"
        )
    case "merge":
        receipt = merge(store, recipe, made("fetch"), [made("quantize")])
    case "validate":
        receipt = validate(store, recipe, made("fetch"), made("plan"), made("merge"), "cpu")
(folder / step).write_bytes(receipt.to_json())
"""


def main() -> None:
    """Measures both models with few and many calibration tokens, and prints the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    small = FOLDER / "small" / "model"
    if not (FOLDER / "small" / "fetch").exists():
        gguf = download_smollm2(FOLDER / "download")
        run_step("fetch", FOLDER / "small", _recipe(), str(gguf), "")
    large = FOLDER / "large-model"
    export(FOLDER / "small", small)
    if not (large / "config.json").exists():
        program = _MAKE_LARGE.format(sizes=LARGE)
        python(program, str(small), str(large))
        for path in small.iterdir():
            if path.suffix != ".safetensors" and not (large / path.name).exists():
                shutil.copy(path, large)
    table = Table("model", "tokens", "step", "planned MiB", "measured MiB", "ratio")
    for name, source, counts in (("SmolLM2", small, (32, 128)), ("8 times", large, (16, 64))):
        for samples in counts:
            for row in measure(name, source, samples):
                table.add_row(*row)
        for row in measure(name, source, 0):
            table.add_row(*row)
    Console().print(table)


def measure(name: str, source: Path, samples: int) -> list[tuple[str, ...]]:
    """The rows of one model: calibrate and quantize on so many samples, or merge and validate."""
    folder = FOLDER / f"{name.replace(' ', '-')}-{samples}"
    shutil.rmtree(folder, ignore_errors=True)
    data = _recipe()
    if samples:
        data["calibration"] = CALIBRATION_TEXT | {
            "num_samples": samples,
            "sequence_length": SEQUENCE,
        }
        data["num_ranges"], blocks = 3, "0:2"
    else:  # of whole models, by a method that takes no time
        data["quantization"]["method"] = "minmax"
        data["validation"] = EVALUATION_TEXT | {"num_samples": 3, "sequence_length": SEQUENCE}
        blocks = f"0:{json.loads((source / 'config.json').read_text())['num_hidden_layers']}"
    shown = ("calibrate", "quantize") if samples else ("merge", "validate")
    steps = ["fetch", "plan", "calibrate", "smooth", "quantize"]
    steps += [] if samples else shown
    peaks = {step: run_step(step, folder, data, str(source), blocks) for step in steps}
    store = LocalStore(folder / "store")
    model = Receipt.from_json((folder / "fetch").read_bytes())
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    recipe = settle(parse_recipe(data), adapter).recipe
    estimate = estimate_run(recipe, checkpoint, adapter, find_hardware("cpu"), 1)
    rows = []
    for step in shown:
        measured = peaks[step] >> 20
        planned = "-" if step not in estimate.needs else _planned(estimate.needs[step].memory.host)
        ratio = "-" if planned == "-" else f"{int(planned) / measured:.2f}"
        tokens = f"{samples * SEQUENCE:,}" if samples else "-"
        rows.append((name, tokens, step, planned, str(measured), ratio))
        print(*rows[-1], file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    return rows


def _recipe() -> dict[str, Any]:
    return {"quantization": {"weights": {"group_size": 64}}}


def _planned(count: int) -> str:
    return f"{count / (1 << 20):.0f}"


def run_step(step: str, folder: Path, recipe: dict[str, Any], source: str, blocks: str) -> int:
    """Runs a step in a process of its own; returns the peak of its memory in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    return python(_STEPS, step, str(folder), json.dumps(recipe), source, blocks)


def export(folder: Path, target: Path) -> None:
    """Writes the fetched model as a folder."""
    store = LocalStore(folder / "store")
    receipt = Receipt.from_json((folder / "fetch").read_bytes())
    for name in receipt.files:
        store.export_file(receipt.path(name), target / name)


def python(program: str, *arguments: str) -> int:
    """Runs a program, whose errors are this benchmark's; returns its peak of memory in bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "QUANTLIB_DRY_LOAD": "never"}
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return peak


def memory_of(process: int) -> int:
    """Bytes of a process and of those that it started.

    Private memory, forks' shared pages divided among them, and the files that the largest has
    mapped: the others map the same libraries.
    """
    anonymous = files = 0
    waiting = [process]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            text = (folder / "smaps_rollup").read_text()
            for thread in folder.glob("task/*/children"):
                waiting += map(int, thread.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        kib = {
            name: int(count)
            for name, count in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
        }
        if not kib:
            continue
        anonymous += kib["Pss_Anon"] + kib["Pss_Shmem"]
        files = max(files, kib["Rss"] - kib["Anonymous"])
    return (anonymous + files) << 10


if __name__ == "__main__":
    main()
