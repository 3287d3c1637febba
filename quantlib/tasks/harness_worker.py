"""lm-eval in a process of its own: asks a server the items of tasks, and scores what it answers.

    python -m quantlib.tasks.harness_worker

Reads requests from standard input, one JSON object a line, as
:class:`quantlib.tasks.harness.Request` is one, and prints one line for each: ``{"done": true}``, or
``{"error": ...}``. lm-eval is imported here and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from quantlib.tasks import scoring
from quantlib.tasks.kinds import KINDS, expected_call, right_letter, tools_of
from quantlib.tasks.sandbox import outcome_of

Row = Mapping[str, Any]
Scores = dict[str, float]
_SCORE, _VALID, _SPLIT = "score", "valid", "test"
_LIBRARY_SCORES = {"gsm8k": "exact_match"}
"""The metric of a task that lm-eval scores itself."""


def main() -> None:
    """Answers requests until there are no more."""
    # What lm-eval and its libraries print is the log; the line for each request is the answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            _evaluate(json.loads(line))
            _say(answers, {"done": True})
        except Exception as error:  # of the harness or of the server: whoever asked says which
            _say(answers, {"error": f"{type(error).__name__}: {error}"})


def _say(answers: TextIO, what: Mapping[str, Any]) -> None:
    print(json.dumps(what), file=answers, flush=True)


def _evaluate(request: Mapping[str, Any]) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    name = request["task"]
    rows = [json.loads(line) for line in Path(request["items"]).read_text("utf-8").splitlines()]
    task = ConfigurableTask(config=_config(name, rows, request))
    chat = request["chat"]
    found = simple_evaluate(
        model="local-chat-completions" if chat else "local-completions",
        model_args={
            "model": request["model"],
            "base_url": f"{request['url']}/v1/{'chat/' if chat else ''}completions",
            "tokenizer_backend": None,
            "num_concurrent": request["concurrency"],
            "timeout": request["request_timeout"],
            "max_retries": 2,
            "seed": request["seed"],
        },
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),  # reading those takes ten seconds
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    answered = [
        {
            "answer": sample["resps"][0][0],
            "score": float(sample[_LIBRARY_SCORES.get(name, _SCORE)]),
            "valid": float(sample.get(_VALID, 1.0)),
        }
        for sample in samples
    ]
    path = Path(request["output"])
    path.write_text(json.dumps(answered), encoding="utf-8")


def _config(name: str, rows: list[Row], request: Mapping[str, Any]) -> dict[str, Any]:
    """A task of lm-eval over our items."""
    from datasets import Dataset

    docs = [{"row": json.dumps(row), "answer": _target(name, row)} for row in rows]
    prompt = KINDS[name].prompt
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: {_SPLIT: Dataset.from_list(docs)},
        "test_split": _SPLIT,
        "output_type": "generate_until",
        "doc_to_text": lambda doc: prompt(json.loads(doc["row"])),
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {
            "until": [],
            "do_sample": request["temperature"] > 0,
            "temperature": request["temperature"],
            "max_gen_toks": request["max_tokens"],
        },
    }
    if name in _LIBRARY_SCORES:
        return config | _gsm8k()
    return config | {
        "process_results": partial(_process, _SCORERS[name]),
        "metric_list": [
            {"metric": each, "aggregation": "mean", "higher_is_better": True}
            for each in (_SCORE, _VALID)
        ],
    }


def _target(name: str, row: Row) -> str:
    return str(row["answer"]) if name in _LIBRARY_SCORES else ""


def _gsm8k() -> dict[str, Any]:
    """How lm-eval finds the number in an answer and compares it."""
    import lm_eval
    import yaml

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot-zeroshot.yaml"
    defined = yaml.safe_load(path.read_text(encoding="utf-8"))
    flexible = [each for each in defined["filter_list"] if each["name"] == "flexible-extract"]
    return {"metric_list": defined["metric_list"], "filter_list": flexible}


def _process(score: Callable[[Row, str], Scores], doc: Row, results: list[str]) -> Scores:
    return {_SCORE: 0.0, _VALID: 1.0} | score(
        json.loads(doc["row"]), scoring.answer_part(results[0])
    )


def _instructions(row: Row, answer: str) -> Scores:
    found = _ifeval()({"key": row.get("key", 0), **row}, [answer])
    return {_SCORE: float(found["prompt_level_strict_acc"])}


def _ifeval() -> Callable[[Row, list[str]], dict[str, Any]]:
    """lm-eval's checks of instructions, without what they would download of nltk.

    Words are cut without a look at where sentences end, and sentences by nltk's rules without the
    list of abbreviations that it learned from English newspapers: alike for both models.
    """
    import nltk

    nltk.download = lambda *_, **__: False
    from lm_eval.tasks.ifeval import instructions_util, utils

    instructions_util.nltk.word_tokenize = partial(nltk.NLTKWordTokenizer().tokenize)
    sentences = nltk.tokenize.punkt.PunktSentenceTokenizer()
    instructions_util._get_sentence_tokenizer = lambda: sentences
    check: Callable[[Row, list[str]], dict[str, Any]] = utils.process_results
    return check


def _function(row: Row, answer: str) -> Scores:
    code = scoring.code_of(answer)
    if not re.search(rf"^\s*def {re.escape(row['entry_point'])}\b", code, re.MULTILINE):
        code = f"{row['prompt']}{code}"
    return _passes(f"{code}\n\n{row['test']}\n\ncheck({row['entry_point']})\n")


def _program(row: Row, answer: str) -> Scores:
    tests = row.get("test") or "\n".join([*row.get("test_imports", ()), *row["test_list"]])
    return _passes(f"{scoring.code_of(answer)}\n\n{tests}\n")


def _passes(program: str) -> Scores:
    return {_SCORE: float(not outcome_of(program))}


def _letter(row: Row, answer: str) -> Scores:
    letter = scoring.chosen_letter(answer)
    return {_SCORE: float(letter == right_letter(row)), _VALID: float(letter is not None)}


def _call(row: Row, answer: str) -> Scores:
    call = scoring.call_of(answer)
    valid = scoring.is_valid_call(call, tools_of(row))
    right = call is not None and valid and scoring.is_expected_call(call, expected_call(row))
    return {_SCORE: float(right), _VALID: float(valid)}


def _found(row: Row, answer: str) -> Scores:
    return {_SCORE: float(scoring.holds(answer, str(row["answer"])))}


_SCORERS: Mapping[str, Callable[[Row, str], Scores]] = {
    "ifeval": _instructions,
    "humaneval": _function,
    "mbpp": _program,
    "knowledge": _letter,
    "tools": _call,
    "retrieval": _found,
}


if __name__ == "__main__":
    main()
