"""SmolLM2 calibrated on text and on conversations, each judged on both.

``python benchmarks/content.py MODEL`` quantizes the model in the folder MODEL (W4A16 by GPTQ, all
else the default) on the calibration text that ships, without the chat template and with it, and
prints the figures of both checkpoints on the evaluation text, written in both ways.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from judging import Judge
from processes import ROOT, run

from quantlib.recipe import Content

FOLDER = ROOT / "build" / "benchmarks" / "content"
CONTENTS: tuple[Content, ...] = ("text", "auto")
WINDOWS = 64


def checkpoint(model: Path, content: Content, samples: int) -> Path:
    """Quantizes the model on a text written in one way; gives the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    recipe, output = FOLDER / f"{content}.yaml", FOLDER / content
    calibration = {"content": content, "num_samples": samples}
    recipe.write_text(yaml.safe_dump({"calibration": calibration}))
    command = [sys.executable, "-m", "quantlib", "quantize", "--recipe", str(recipe)]
    command += ["--model", str(model), "--output", str(output), "--overwrite", "--device", "cpu"]
    if run(command, output.with_suffix(".log")).status:
        raise SystemExit(f"quantizing failed: {output.with_suffix('.log')}")
    return output


def main() -> None:
    """Prints a row for each way of calibrating and of judging."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a model with a chat template")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows of 512")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="held-out ones")
    arguments = parser.parse_args()
    made = {
        content: checkpoint(arguments.model, content, arguments.samples) for content in CONTENTS
    }
    print("| calibrated | judged | KL | standard error | top-1 | perplexity | original's |")
    print("|---|---|---|---|---|---|---|")
    for judged in CONTENTS:
        judge = Judge(arguments.model, arguments.windows, {"content": judged})
        for calibrated, folder in made.items():
            figures = judge.judge(folder)
            print(
                f"| {calibrated} | {judged} | {figures.kl.value:.4f} | "
                f"{figures.kl.error:.4f} | {figures.top1.value:.4f} | "
                f"{figures.perplexity_quantized:.2f} | {figures.perplexity_original:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
