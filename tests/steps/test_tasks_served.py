"""Tasks as users have them: vLLM's server and lm-eval, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.steps import tasks as module
from quantlib.steps.tasks import read_outcome, tasks
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(installed_vllm() is None, reason="needs vLLM"),
]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def test_both_models_are_served_and_asked(
    make_model: Any,
    small_recipe: Any,
    run_steps: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra tasks")
    source = make_model(tmp_path / "model", "llama", max_position_embeddings=2048)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    store = LocalStore(tmp_path / "store")
    asked = [{"name": name, "samples": 2, "max_tokens": 8} for name in ("gsm8k", "retrieval")]
    loads = {"concurrency": [2], "requests": 1, "input_tokens": 16, "output_tokens": 4}
    recipe = small_recipe(tasks={"run": asked, "loads": loads})
    made = run_steps(store, recipe, source)
    texts = bring_texts(store, recipe)
    given = (store, recipe, made.model, texts, made.checkpoint, "cpu")
    outcome = read_outcome(store, tasks(*given))
    assert outcome is not None
    # A model of random weights has no point, so that nothing can be kept of one.
    assert outcome.verdict == "inconclusive"
    assert [(each.name, each.items, each.counted) for each in outcome.tasks] == [
        ("gsm8k", 2, False),
        ("retrieval", 2, False),
    ]
    for task in outcome.tasks:
        for answers in (task.original, task.again, task.quantized):
            assert 0 < answers.tokens <= 16
    assert outcome.serving is not None
    assert not outcome.serving.is_gpu
    for before, after in outcome.serving.pairs:
        assert before.requests == after.requests == 2
        assert min(before.tokens_per_second, after.tokens_per_second) > 0
        assert min(before.first_token_ms, after.between_tokens_ms) > 0
    assert outcome.serving.quantized.weights_bytes < outcome.serving.original.weights_bytes
    assert outcome.serving.original.cache_tokens
    assert outcome.chat
    assert outcome.served.startswith("vLLM ")

    def again(*_: Any) -> None:
        raise AssertionError("served again")

    monkeypatch.setattr(module, "served", again)
    assert read_outcome(store, tasks(*given)) == outcome
