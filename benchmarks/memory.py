"""Peak memory of calibrate and of a quantize worker, measured and as `quantlib plan` says.

    python benchmarks/memory.py

Two models: SmolLM2-135M, and a random Llama eight times larger. Every step is a process of its own;
its peak is that of its resident set, as the kernel counts it. Takes about ten minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from rich.console import Console
from rich.table import Table
from smollm2 import download_smollm2

from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.recipe import parse_recipe
from quantlib.models import open_model
from quantlib.planning import estimate_run, find_hardware
from quantlib.store import LocalStore, Receipt, run_facts

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
from quantlib.steps.plan import plan
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore, Receipt

step, folder, recipe, source = sys.argv[1:]
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
            store, recipe, "0:2", made("fetch"), made("calibrate"), made("smooth"), "cpu"
        )
(folder / step).write_bytes(receipt.to_json())
"""


def main() -> None:
    """Measures both models with few and many calibration tokens, and prints the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    small = FOLDER / "small" / "model"
    if not (FOLDER / "small" / "fetch").exists():
        gguf = download_smollm2(FOLDER / "download")
        run_step("fetch", FOLDER / "small", {}, str(gguf))
    large = FOLDER / "large-model"
    export(FOLDER / "small", small)
    if not (large / "config.json").exists():
        program = _MAKE_LARGE.format(sizes=LARGE)
        python(program, str(small), str(large))
        for path in small.iterdir():
            if path.suffix != ".safetensors" and not (large / path.name).exists():
                shutil.copy(path, large)
    table = Table("model", "tokens", "step", "measured MiB", "planned MiB", "ratio")
    for name, source, counts in (("SmolLM2", small, (32, 128)), ("8 times", large, (16, 64))):
        for samples in counts:
            for row in measure(name, source, samples):
                table.add_row(*row)
    Console().print(table)


def measure(name: str, source: Path, samples: int) -> list[tuple[str, ...]]:
    """The rows of one model and number of samples."""
    folder = FOLDER / f"{name.replace(' ', '-')}-{samples}"
    shutil.rmtree(folder, ignore_errors=True)
    data = {
        "quantization": {"weights": {"group_size": 64}},
        "calibration": {"num_samples": samples, "sequence_length": SEQUENCE},
        "num_ranges": 3,
    }
    for step in ("fetch", "plan", "calibrate", "smooth", "quantize"):
        run_step(step, folder, data, str(source))
    store = LocalStore(folder / "store")
    model = Receipt.from_json((folder / "fetch").read_bytes())
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    estimate = estimate_run(parse_recipe(data), checkpoint, adapter, find_hardware("cpu"), 1)
    rows = []
    for step in ("calibrate", "quantize"):
        receipt = Receipt.from_json((folder / step).read_bytes())
        measured = run_facts(store, receipt)["peak_mib"]
        planned = estimate.needs[step].memory.host / (1 << 20)
        tokens = f"{samples * SEQUENCE:,}"
        ratio = f"{planned / measured:.2f}"
        rows.append((name, tokens, step, f"{measured:,}", f"{planned:,.0f}", ratio))
        print(*rows[-1], file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    return rows


def run_step(step: str, folder: Path, recipe: dict[str, Any], source: str) -> None:
    """Runs a step in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    python(_STEPS, step, str(folder), json.dumps(recipe), source)


def export(folder: Path, target: Path) -> None:
    """Writes the fetched model as a folder."""
    store = LocalStore(folder / "store")
    receipt = Receipt.from_json((folder / "fetch").read_bytes())
    for name in receipt.files:
        store.export_file(receipt.path(name), target / name)


def python(program: str, *arguments: str) -> None:
    """Runs a program; its errors are this benchmark's."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "QUANTLIB_DRY_LOAD": "never"}
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=environment)


if __name__ == "__main__":
    main()
