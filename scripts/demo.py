"""``make demo``: the whole pipeline on a real model, on this machine.

    python scripts/demo.py

Fetches SmolLM2-135M-Instruct, quantizes it to W4A16 by GPTQ in four ranges through the
workflow, has the result judged in vLLM by text and by tasks, publishes it, and writes
build/demo/summary.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from smollm2 import download_smollm2

from quantlib.checks.recipe import load_recipe
from quantlib.checks.tasks import uninstalled_problems

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "demo"
RECIPE = Path(__file__).with_name("demo.yaml")


def main() -> int:
    """Runs the demo; returns the exit code of the pipeline."""
    model = download_smollm2(FOLDER / "model")
    command = [sys.executable, "-m", "quantlib", "run", "--recipe", str(_recipe())]
    command += ["--model", str(model), "--run-dir", str(FOLDER / "run")]
    command += ["--store", str(FOLDER / "store"), "--publish-to", str(FOLDER / "published")]
    # Where there is no vLLM for the platform, transformers judges, and the report says so.
    environment = {"QUANTLIB_ENGINE_FALLBACK": "transformers"} | os.environ
    exit_code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if exit_code:
        return exit_code
    summary = summarize(json.loads((FOLDER / "run" / "run.json").read_text()))
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(summary)
    return 0


def _recipe() -> Path:
    """The recipe, without its tasks where nothing here asks them."""
    problems = uninstalled_problems(load_recipe(RECIPE))
    if not problems:
        return RECIPE
    print(f"without tasks: {problems[0]}", file=sys.stderr)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    del recipe["tasks"]
    path = FOLDER / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def summarize(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run.

    Args:
        run: The content of its ``run.json``.
    """
    tasks = run["tasks"]
    published = Path(tasks["publish"]["outputs"]["parameters"]["address"])
    report = json.loads((published / "quantization_report.json").read_text())
    evaluation, quantization = report["evaluation"], report["recipe"]["quantization"]
    return {
        "method": quantization["method"],
        "bits": quantization["weights"]["bits"],
        "group_size": quantization["weights"]["group_size"],
        "ranges": sum(name.startswith("quantize[") for name in tasks),
        "perplexity_original": evaluation["original"]["perplexity"],
        "perplexity_quantized": evaluation["quantized"]["perplexity"],
        "kl_mean": evaluation["kl_mean"],
        "top1_agreement": evaluation["top1_agreement"],
        "bytes_original": report["sizes"]["bytes_original"],
        "bytes_quantized": report["sizes"]["bytes_quantized"],
        "tasks": {
            task["name"]: [task["original"]["score"], task["quantized"]["score"]]
            for task in (report["tasks"] or {"tasks": ()})["tasks"]
        },
        "gate": "passed" if evaluation["gate"]["passed"] else "failed",
        "engine": evaluation["engine"],
        "published": str(published),
        "report": str(published / "quantization_report.html"),
        "seconds_per_step": {
            name: round(task["seconds"], 2)
            for name, task in tasks.items()
            if task["state"] == "succeeded"
        },
    }


def show(summary: dict[str, Any]) -> None:
    """Prints the figures and what to do next."""
    megabytes = [summary[name] / 1e6 for name in ("bytes_original", "bytes_quantized")]
    print(
        f"\nperplexity {summary['perplexity_original']:.2f} -> "
        f"{summary['perplexity_quantized']:.2f}, mean KL {summary['kl_mean']:.3f}, "
        f"top-1 agreement {summary['top1_agreement']:.1%}, "
        f"{megabytes[0]:.0f} MB -> {megabytes[1]:.0f} MB, judged by {summary['engine']}"
    )
    for name, (original, quantized) in summary["tasks"].items():
        print(f"{name}: {original:.0%} -> {quantized:.0%}")
    print(f"report:    {summary['report']}")
    print(f"published: {summary['published']}")
    print(f"summary:   {FOLDER / 'summary.json'}")
    serve = f".venv/bin/quantlib deploy --name smollm2 --model {summary['published']}"
    print(f"serve it:  {serve}")


if __name__ == "__main__":
    sys.exit(main())
