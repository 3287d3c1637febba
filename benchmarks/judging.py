"""Compares checkpoints with their original on the held-out text that ships.

    python judging.py ORIGINAL CHECKPOINT... [--windows 40] [--activations fp8]

Prints the figures of each checkpoint as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shipped_texts import EVALUATION_TEXT
from torch import Tensor

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.evaluation.figures import Compared, Figures, summarize
from quantlib.evaluation.metrics import compare
from quantlib.evaluation.transformers_engine import load_model
from quantlib.numbers.inputs import round_input
from quantlib.schemes import Activations
from quantlib.steps.texts import windows_without_store

WINDOWS = 40
"""Of 512 tokens: more than the pipeline's default, so that small differences show."""


class Judge:
    """Holds the original's final hidden states.

    Both models are computed in float32 by transformers, with the weights that the codes stand for
    and int8 activations rounded as vLLM rounds them, so that only quantization is measured.
    """

    @torch.no_grad()
    def __init__(
        self,
        original: Path,
        windows: int = WINDOWS,
        text: Mapping[str, Any] = EVALUATION_TEXT,
    ) -> None:
        wanted = {"num_samples": windows, "max_samples": windows}
        recipe = parse_recipe({"validation": {**text, **wanted}})
        text = windows_without_store(recipe.validation, FolderSource(original))
        self._windows = torch.from_numpy(text.tokens)
        self._predicted = text.predicted
        model = load_model(original, torch.float32).eval()
        self._head = model.get_output_embeddings()
        self._hidden = [self._states(model, window) for window in self._windows]

    @torch.no_grad()
    def judge(self, checkpoint: Path, activations: Activations = "none") -> Figures:
        """The figures of a checkpoint, ours or another tool's in compressed-tensors.

        Args:
            checkpoint: Its folder.
            activations: What the inputs of all linears are rounded to, besides what the checkpoint
                says: for one that holds the weights that its codes stand for.
        """
        model = load_model(checkpoint, torch.float32).eval()
        if activations != "none":
            for module in model.base_model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_pre_hook(
                        lambda _module, inputs: (round_input(inputs[0], activations),)
                    )
        parts = [
            compare(self._head(states), self._head(self._states(model, window)), window[1:])
            for window, states in zip(self._windows, self._hidden, strict=True)
        ]
        names = ("kl", "reference_nll", "candidate_nll", "same_top1")
        columns = (np.stack([getattr(part, name) for part in parts]) for name in names)
        return summarize(Compared(*columns), self._predicted)

    @staticmethod
    def _states(model: torch.nn.Module, window: Tensor) -> Tensor:
        states = model.base_model(window[None], use_cache=False).last_hidden_state
        return states[0, :-1]


def main() -> None:
    """Judges the checkpoints of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--activations", default="none")
    arguments = parser.parse_args()
    judging = Judge(arguments.original, arguments.windows)
    for checkpoint in arguments.checkpoints:
        figures = judging.judge(checkpoint, arguments.activations)
        print(json.dumps(figures.by_name()), flush=True)


if __name__ == "__main__":
    main()
