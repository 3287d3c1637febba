"""Rounds of a judgement, and what decides their predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from quantlib.evaluation.choose_engine import EngineChoice
from quantlib.evaluation.evaluate import rounds
from quantlib.evaluation.setting import Setting
from quantlib.store import Receipt
from quantlib.text.windows import Windows

WINDOWS = Windows(np.arange(48).reshape(6, 8), "text", False, "sha256:1", {})
SETTING = Setting(
    EngineChoice("vllm", "1"),
    "cuda",
    "bfloat16",
    WINDOWS,
    Receipt(step="windows", key="1" * 64, code={}, parameters={}, inputs={}, files={}),
    Tokenizer(BPE()),
    ("a prompt",),
    4,
    {},
    drafts=True,
)


@pytest.mark.parametrize(
    ("first", "most", "expected"),
    [
        (8, 64, [(0, 8), (8, 16), (16, 32), (32, 64)]),
        (8, 40, [(0, 8), (8, 16), (16, 32), (32, 40)]),
        (8, 8, [(0, 8)]),
        (1, 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_every_round_has_twice_the_windows_and_reads_the_new_ones(
    first: int, most: int, expected: list[tuple[int, int]]
) -> None:
    assert list(rounds(first, most)) == expected


def test_prompts_are_completed_in_the_first_round_alone() -> None:
    first, later = SETTING.part(0, 2), SETTING.part(2, 6)
    assert (first.prompts, first.drafts) == (("a prompt",), True)
    assert (later.prompts, later.drafts) == ((), False)
    assert later.windows.tokens.tolist() == WINDOWS.tokens[2:].tolist()
    assert first.parameters()["windows"] == [0, 2]
    assert later.parameters()["windows"] == [2, 6]


def test_several_gpus_are_part_of_what_decides_the_predictions() -> None:
    assert "tensor_parallel_size" not in SETTING.parameters()
    spread = dataclasses.replace(SETTING, tensor_parallel_size=2)
    assert spread.parameters() == SETTING.parameters() | {"tensor_parallel_size": 2}


def test_what_opens_a_document_is_not_predicted() -> None:
    tokens = np.array([[7, 1, 2, 7, 3], [7, 4, 5, 6, 1]])
    opened = Windows(tokens, "text", False, "sha256:1", {}, ("<s>",))
    assert opened.predicted.tolist() == [[True, True, False, True], [True] * 4]
    assert dataclasses.replace(opened, opening=()).predicted.all()
