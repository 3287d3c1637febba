"""The in-toto statement on a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from quantlib.errors import InvalidInputError
from quantlib.report.build import build_report
from quantlib.report.model import Report
from quantlib.report.provenance import provenance_of, read_subjects, subjects_of
from quantlib.runtime.code_version import code_digest, code_version
from quantlib.store import transaction


def report_of(run: Any) -> Report:
    return build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)


def dependencies(statement: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {entry["name"]: entry for entry in found}


def test_the_statement_names_every_file_of_the_checkpoint(run) -> None:
    statement = provenance_of(report_of(run))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    digests = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    assert set(digests) == set(run.checkpoint.facts["checkpoint_files"])
    for name, digest in digests.items():
        data = bytes(run.store.read(run.checkpoint.path(name)))
        assert digest == hashlib.sha256(data).hexdigest()


def test_the_statement_cites_the_steps_own_surroundings(make_run, tmp_path, monkeypatch) -> None:
    image = "example/quantlib@sha256:" + "12" * 32
    with monkeypatch.context() as patch:
        patch.setenv("QUANTLIB_IMAGE", image)
        patch.setattr(transaction, "code_versions", lambda: {"quantlib": "0.0.9+" + "ab" * 32})
        made = make_run(tmp_path)
    monkeypatch.setenv("QUANTLIB_IMAGE", "example/publisher@sha256:" + "34" * 32)
    statement = provenance_of(report_of(made))
    found = dependencies(statement)
    assert found["image"]["uri"] == image
    assert found["image"]["digest"] == {"sha256": "12" * 32}
    assert found["quantlib"]["digest"] == {"sha256": "ab" * 32}
    assert found["quantlib"]["annotations"] == {"version": "0.0.9+" + "ab" * 6}
    assert "publisher" not in json.dumps(statement)
    steps = statement["predicate"]["buildDefinition"]["internalParameters"]["steps"]
    assert {step["step"] for step in steps} >= {"fetch", "quantize", "merge", "validate"}
    for step in steps:
        assert step["image"] == image
        assert step["hardware"]
        assert step["code"] == {"quantlib": "0.0.9+" + "ab" * 32}


def test_the_statement_tells_what_went_into_the_checkpoint(run) -> None:
    report = report_of(run)
    statement = provenance_of(report)
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {
        "source": {"kind": "hub", "repo": "example-org/Tiny-Llama-6", "commit": "c0ffee" * 6},
        "recipe": run.recipe.model_dump(mode="json"),
    }
    found = dependencies(statement)
    assert found["model"]["uri"] == "hf://example-org/Tiny-Llama-6@" + "c0ffee" * 6
    assert found["model"]["digest"] == {"sha256": "5a" * 32, "gitCommit": "c0ffee" * 6}
    assert found["calibration text"]["digest"] == {"sha256": "ca" * 32}
    assert found["evaluation text"]["digest"] == {"sha256": "77" * 32}
    assert found["quantlib"]["digest"] == {"sha256": code_digest()}
    assert found["quantlib"]["annotations"] == {"version": code_version()}
    assert statement["predicate"]["quantlib_recipe"] == run.recipe.digest()
    assert statement["predicate"]["quantlib_checkpoint"] == report.provenance.checkpoint_digest


def test_the_statement_tells_how_it_was_made_and_judged(run) -> None:
    predicate = provenance_of(report_of(run))["predicate"]
    details = predicate["runDetails"]
    assert details["builder"]["version"]["quantlib"]
    last = details["byproducts"][-1]
    path = f"steps/validate/{run.validation.key}.json"
    assert last["uri"] == path
    assert last["digest"] == {"sha256": hashlib.sha256(bytes(run.store.read(path))).hexdigest()}
    steps = [entry["annotations"]["step"] for entry in details["byproducts"]]
    assert steps[0] == "fetch"
    assert steps.count("quantize") == 2
    gate = predicate["quantlib_gate"]
    assert (gate["outcome"], gate["kl_mean"], gate["engine"]) == ("passed", 0.108, "vllm")
    told = {"name": "perplexity_increase", "value": 0.09, "limit": 0.15, "passed": True}
    assert told.items() <= gate["checks"][0].items()


def test_equal_work_has_equal_provenance_wherever_it_was_done(
    make_run: Callable[..., Any], tmp_path
) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    for number, run in enumerate((first, second)):
        run.store.put_bytes(
            json.dumps({"seconds": 1.0 + number, "peak_mib": 5}).encode(),
            f"{run.validation.aside}/run.json",
        )
    assert report_of(first) != report_of(second)
    assert provenance_of(report_of(first)) == provenance_of(report_of(second))


def test_what_was_not_used_is_not_named(make_run: Callable[..., Any], tmp_path) -> None:
    run = make_run(tmp_path, text=None)
    report = build_report(run.store, run.recipe, run.checkpoint, None)
    statement = provenance_of(report)
    assert set(dependencies(statement)) == {"model", "quantlib"}
    assert statement["predicate"]["quantlib_gate"] == {
        "outcome": "not_validated",
        "reason": "The checkpoint was not compared with the original model.",
    }


def test_subjects_are_read_back(run) -> None:
    report = report_of(run)
    data = json.dumps(provenance_of(report)).encode()
    assert read_subjects(data, "here") == subjects_of(report.sizes.files)
    for other, what in (
        (b"[]", "is no in-toto statement"),
        (b"{", "is no in-toto statement"),
        (b'{"schema": "quantlib/provenance/1"}', "is no in-toto statement"),
        (data.replace(b"slsa.dev/provenance/v1", b"slsa.dev/provenance/v9"), "no SLSA provenance"),
    ):
        with pytest.raises(InvalidInputError, match=f"here: .*{what}"):
            read_subjects(other, "here")
