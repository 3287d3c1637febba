"""Which block of a model a draft layer is like."""

from __future__ import annotations

from quantlib.models.drafts import draft_blocks_of, drafting_of
from quantlib.models.layout import BlockKind
from quantlib.models.naming import DRAFTING, OUTSIDE

ATTENTION = {"self_attn.q_proj": (64, 32), "self_attn.o_proj": (32, 64)}
DENSE = BlockKind(inputs=(), shapes={**ATTENTION, "mlp.up_proj": (96, 32)})
MIXTURE = BlockKind(inputs=(), shapes={**ATTENTION, "mlp.experts.*.up_proj": (48, 32)})
KINDS, KIND_OF = (DENSE, MIXTURE), (0, 0, 1, 1)


def named(prefix: str, kind: BlockKind) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in kind.shapes.items()}


def test_the_matrices_of_modules_that_draft_are_found() -> None:
    outer = {
        "mtp.fc.weight": (32, 64),
        "mtp.norm.weight": (32,),
        "mtp.layers.0.mlp.experts.0.up_proj.weight": (48, 32),
        "mtp.layers.0.mlp.experts.1.up_proj.weight": (48, 32),
        "mtp.layers.0.mlp.experts.down_proj": (2, 32, 48),
        "visual.proj.weight": (32, 32),
    }
    assert drafting_of(outer, {"mtp.": DRAFTING, "visual.": OUTSIDE}) == {
        "mtp.fc": (32, 64),
        "mtp.layers.0.mlp.experts.*.up_proj": (48, 32),
        "mtp.layers.0.mlp.experts.down_proj": (2, 32, 48),
    }


def test_a_draft_block_is_like_the_last_block_with_its_linears() -> None:
    dense, mixture = named("mtp.layers.0.", DENSE), named("model.layers.4.", MIXTURE)
    drafting = {**dense, **mixture, "mtp.fc": (32, 64), "model.layers.4.eh_proj": (32, 64)}
    assert draft_blocks_of(drafting, KINDS, KIND_OF) == {"mtp.layers.0.": 1, "model.layers.4.": 3}


def test_a_draft_block_with_another_shape_or_without_a_linear_is_like_none() -> None:
    wide = {**named("mtp.layers.0.", DENSE), "mtp.layers.0.mlp.up_proj": (128, 32)}
    bare = named("mtp.layers.0.", BlockKind(inputs=(), shapes=ATTENTION))
    for drafting in (wide, bare):
        assert draft_blocks_of(drafting, KINDS, KIND_OF) == {}


def test_experts_that_are_stored_otherwise_are_experts() -> None:
    bare = named("mtp.layers.0.", BlockKind(inputs=(), shapes=ATTENTION))
    stacked = {**bare, "mtp.layers.0.mlp.experts.up_proj": (2, 48, 32)}
    assert draft_blocks_of(stacked, KINDS, KIND_OF) == {"mtp.layers.0.": 3}
