"""Sizes of models, as plans reckon with them."""

from __future__ import annotations

from quantlib.planning.model import GroupSize, ModelSizes

LLAMA_8B = ModelSizes(
    blocks=32,
    quantized_blocks=32,
    hidden_size=4096,
    stored_bytes=2,
    groups=(
        GroupSize(4096, (4096, 1024, 1024)),
        GroupSize(4096, (4096,)),
        GroupSize(4096, (14336, 14336)),
        GroupSize(14336, (4096,)),
    ),
    largest_block_elements=218_112_000,
    block_elements=32 * 218_112_000,
    embedding_bytes=128256 * 4096 * 2,
    total_bytes=16_060_000_000,
    quantized_bytes=5_700_000_000,
)
SMOLLM2 = ModelSizes(
    blocks=30,
    quantized_blocks=30,
    hidden_size=576,
    stored_bytes=2,
    groups=(
        GroupSize(576, (576, 192, 192)),
        GroupSize(576, (576,)),
        GroupSize(576, (1536, 1536)),
        GroupSize(1536, (576,)),
    ),
    largest_block_elements=3_540_096,
    block_elements=30 * 3_540_096,
    embedding_bytes=49152 * 576 * 2,
    total_bytes=269_060_552,
    quantized_bytes=114_619_416,
)
