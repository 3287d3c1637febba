"""Layers that draft tokens, added to models of the zoo as releases have them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_NUMBERED = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LAST = re.compile(r"(o_proj|out_proj|down_proj)(\.weight)?$")

FIELDS = {
    "qwen3_5": "mtp_num_hidden_layers",
    "deepseek_v3": "num_nextn_predict_layers",
    "glm4_moe": "num_nextn_predict_layers",
    "ernie4_5_moe": "num_nextn_predict_layers",
}
"""The families, and the field of the config that says how many such layers there are."""


def add_draft_layer(
    folder: Path, family: str, *, guess: float = 1.0, strength: float = 0.0
) -> None:
    """Adds a layer to a model of the zoo in which a token decides nearly alone what comes next.

    Args:
        folder: The model.
        family: A key of :data:`FIELDS`.
        guess: What the draft layer takes the new token's embedding times. With 1 it guesses what
            the model says, with -1 what it finds least likely.
        strength: By how much attention and feed-forward count, in the model and the layer: with 0 a
            token alone decides.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if _LAST.search(name):
            tensors[name] = tensor * strength
    kinds = config.get("layer_types") or []
    number = kinds.index("full_attention") if kinds else config["num_hidden_layers"] - 1
    if family == "ernie4_5_moe":
        number = 0  # its layer has no experts
    block = {
        match[2]: tensor
        for name, tensor in tensors.items()
        if (match := _NUMBERED.fullmatch(name)) and int(match[1]) == number
    }
    hidden = config["hidden_size"]
    norm = torch.ones(hidden, dtype=torch.bfloat16)
    both = torch.cat([guess * torch.eye(hidden), torch.zeros(hidden, hidden)], 1).bfloat16()
    final = tensors["model.norm.weight"]
    if family == "qwen3_5":
        start = "mtp.layers.0."
        outer = {
            "mtp.fc.weight": both,
            "mtp.norm.weight": final,
            "mtp.pre_fc_norm_hidden.weight": norm - 1,
            "mtp.pre_fc_norm_embedding.weight": norm - 1,
        }
    elif family == "ernie4_5_moe":
        start = "model.mtp_block.0."
        outer = {
            "model.mtp_emb_norm.0.weight": norm,
            "model.mtp_hidden_norm.0.weight": norm,
            "model.mtp_linear_proj.0.weight": both,
        }
    else:
        start = f"model.layers.{config['num_hidden_layers']}."
        embedding = tensors["model.embed_tokens.weight"]
        outer = {
            f"{start}enorm.weight": norm,
            f"{start}hnorm.weight": norm,
            f"{start}eh_proj.weight": both,
            f"{start}embed_tokens.weight": embedding,
            f"{start}shared_head.norm.weight": final,
            f"{start}shared_head.head.weight": tensors.get("lm_head.weight", embedding),
        }
    added = {f"{start}{name}": tensor for name, tensor in block.items()} | outer
    whole = {name: tensor.clone().contiguous() for name, tensor in (tensors | added).items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    config[FIELDS[family]] = 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
