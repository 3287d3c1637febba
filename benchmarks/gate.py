"""Whether the gate tells damaged checkpoints from good ones, and says the same of other samples.

    python benchmarks/gate.py ORIGINAL CHECKPOINT

Both are folders; the checkpoint is a recipe's with weights alone rounded to 4 bits. Everything is
computed by transformers in bfloat16. Three questions: is a checkpoint refused in which the weights
Both are folders; the checkpoint is of a recipe that rounds weights alone, to 4 bits. Everything is
of the text; and does the original pass against itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.evaluation.evaluate import rounds
from quantlib.evaluation.figures import Compared, summarize
from quantlib.evaluation.gate import Gate, judge
from quantlib.evaluation.limits import FACTOR, limits_for
from quantlib.evaluation.metrics import compare
from quantlib.evaluation.transformers_engine import load_model
from quantlib.evaluation.weight_likeness import LEAST_EXPLAINED, ROWS, explained
from quantlib.quantizers.rounding import round_within_range
from quantlib.recipe import Thresholds
from quantlib.schemes import WeightScheme
from quantlib.steps.texts import windows_without_store

FIRST = 8


@dataclass
class Text:
    """Windows, and what the original makes of them."""

    tokens: Tensor
    predicted: np.ndarray
    hidden: list[Tensor]
    head: nn.Module

    @classmethod
    @torch.inference_mode()
    def read(cls, original: nn.Module, folder: Path, samples: int) -> Text:
        """Reads the held-out text that ships."""
        section = {"num_samples": samples, "max_samples": samples}
        recipe = parse_recipe({"validation": section})
        windows = windows_without_store(recipe.validation, FolderSource(folder))
        tokens = torch.from_numpy(windows.tokens)
        hidden = [states(original, window) for window in tokens]
        return cls(tokens, windows.predicted, hidden, original.get_output_embeddings())

    @torch.inference_mode()
    def compared(self, model: nn.Module, windows: int) -> Compared:
        """A model against the original on the first windows."""
        parts = [
            compare(self.head(self.hidden[at]), self.head(states(model, window)), window[1:])
            for at, window in enumerate(self.tokens[:windows])
        ]
        names = ("kl", "reference_nll", "candidate_nll", "same_top1")
        columns = (np.stack([getattr(part, name) for part in parts]) for name in names)
        return Compared(*columns)


def states(model: nn.Module, window: Tensor) -> Tensor:
    """Final hidden states of all tokens but the last, ``[positions, hidden_size]``."""
    found: Tensor = model.base_model(window[None], use_cache=False).last_hidden_state
    return found[0, :-1]


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Those of the blocks, by name."""
    found = model.base_model.layers.named_modules()
    return {name: module for name, module in found if isinstance(module, nn.Linear)}


@torch.no_grad()
def round_to_nearest(model: nn.Module, group_size: int) -> nn.Module:
    """Rounds the linears of a model to 4 bits, symmetric."""
    scheme = WeightScheme(bits=4, group_size=group_size, symmetric=True)
    for name, linear in linears(model).items():
        codes = round_within_range({name: linear.weight.float()}, scheme, torch.bfloat16)[name]
        linear.weight.copy_(codes.dequantize(torch.bfloat16))
    return model


def gate_in_rounds(
    found: Compared, predicted: np.ndarray, rounding: np.ndarray | None, parameters: int
) -> tuple[Gate, int]:
    """The verdict of :mod:`quantlib.evaluation.evaluate`, on windows in their order."""
    limits = limits_for(Thresholds(), "4 bits", parameters, None if rounding is None else FACTOR)
    for _, stop in rounds(FIRST, len(found.kl)):
        part = Compared(*(array[:stop] for array in vars(found).values()))
        beside = None if rounding is None else rounding[:stop]
        gate = judge(summarize(part, predicted[:stop], beside), limits)
        if gate.outcome != "inconclusive":
            break
    return gate, stop


def damaged(
    good: nn.Module, original: nn.Module, count: int
) -> Iterator[tuple[str, Callable[[], None], float]]:
    """Shuffles one linear after the other; gives its name, what mends it, and what is explained."""
    random = np.random.default_rng(0)
    exact, held = linears(original), linears(good)
    for name in random.choice(list(held), count):
        weight = held[name].weight
        kept = weight.detach().clone()
        order = torch.from_numpy(random.permutation(kept.numel()))
        with torch.no_grad():
            weight.copy_(kept.flatten()[order].view_as(kept))
        share = explained(exact[name].weight[:ROWS].detach(), weight[:ROWS].detach())

        def mend(weight: Tensor = weight, kept: Tensor = kept) -> None:
            with torch.no_grad():
                weight.copy_(kept)

        yield name, mend, share


def _told(share: float) -> str:
    told = "broken" if share < LEAST_EXPLAINED else "not told by its weights"
    return f"{told} (explained {share:.3f})"


def main() -> None:
    """Parses the arguments and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--weights-alone", action="store_true", help="read no text")
    asked = parser.parse_args()
    original = load_model(asked.original, torch.bfloat16).eval()
    if asked.weights_alone:
        good = load_model(asked.checkpoint, torch.bfloat16).eval()
        for name, mend, share in damaged(good, original, asked.times):
            print(f"{name}: {_told(share)}")
            mend()
        return
    text = Text.read(original, asked.original, asked.windows)
    parameters = sum(each.numel() for each in original.parameters())
    good = load_model(asked.checkpoint, torch.bfloat16).eval()
    rounded = round_to_nearest(load_model(asked.original, torch.bfloat16), asked.group_size).eval()
    rounding = text.compared(rounded, asked.windows).kl
    found = text.compared(good, asked.windows)

    random = np.random.default_rng(0)
    for number in range(asked.times):
        order = random.permutation(asked.windows)
        sample = Compared(*(array[order] for array in vars(found).values()))
        gate, read = gate_in_rounds(sample, text.predicted[order], rounding[order], parameters)
        figures = summarize(sample, text.predicted[order])
        print(f"sample {number}: {gate.outcome} after {read} windows, KL {figures.kl.value:.4f}")

    itself = text.compared(original, FIRST)
    gate, _ = gate_in_rounds(itself, text.predicted[:FIRST], None, parameters)
    print(f"original against itself: {gate.outcome}, KL {float(itself.kl.mean()):.2g}", flush=True)

    for name, mend, share in damaged(good, original, asked.times):
        harmed = text.compared(good, FIRST)
        gate, _ = gate_in_rounds(harmed, text.predicted[:FIRST], rounding[:FIRST], parameters)
        print(
            f"{name}: {_told(share)}; by figures alone {gate.outcome}, "
            f"KL {float(harmed.kl.mean()):.4f}",
            flush=True,
        )
        mend()


if __name__ == "__main__":
    main()
