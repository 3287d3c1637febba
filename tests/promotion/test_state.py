"""What a service serves, and what becomes of its arguments."""

import pytest

from quantlib.promotion.state import without


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--dtype auto --swap-space 8", "--swap-space 8"),
        ("--dtype=auto -tp 2", "-tp 2"),
        ("--max_model_len 512 -tp 2", "-tp 2"),
        ("--max-model-len -1 --no-dtype x -O3", "-O3"),
    ],
)
def test_arguments_without_some(words: str, kept: str) -> None:
    assert without(words.split(), ["dtype", "max_model_len"]) == kept.split()
