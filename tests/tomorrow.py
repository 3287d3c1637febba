"""Models of today under names that nobody knows, as a release has on its first day."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MODEL_TYPE = "tomorrow_lm"
ARCHITECTURE = "TomorrowForCausalLM"


def renamed(name: str) -> str:
    """What a tensor is called there."""
    return re.sub(r"^model[.](layers[.])?", lambda m: f"core.{'blocks.' if m[1] else ''}", name)


def disguise(model: Path, folder: Path, extra: dict[str, Tensor] | None = None) -> Path:
    """Writes a model again under other names, with code of its own that is not there.

    Args:
        model: With blocks named ``model.layers.0.`` and so on.
        folder: Where to.
        extra: Further tensors.
    """
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors" and "index" not in path.name:
            shutil.copy(path, folder)
    state = {renamed(name): tensor for name, tensor in state_of(model).items()}
    save_file(state | (extra or {}), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_tomorrow.TomorrowForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def state_of(model: Path) -> dict[str, Tensor]:
    """The tensors of all files."""
    state: dict[str, Tensor] = {}
    for path in sorted(model.glob("*.safetensors")):
        state |= load_file(path)
    return state


def drafting_layers(hidden: int) -> dict[str, Tensor]:
    """Layers that guess tokens ahead, by two of the names that they have in releases."""
    draw = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(shape, generator=draw).bfloat16()
        for name, shape in {
            "mtp.layers.0.self_attn.q_proj.weight": (hidden, hidden),
            "mtp.layers.0.norm.weight": (hidden,),
            "core.mtp.0.eh_proj.weight": (hidden, 2 * hidden),
        }.items()
    }
