"""What a step did, as the Markdown that a run's page shows beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from quantlib.report.build import LINEARS_NAME, TASKS_NAME, read_json
from quantlib.report.model import LinearError
from quantlib.report.text import (
    ABSENT,
    counted,
    duration,
    integer,
    markdown_list,
    markdown_table,
    mebibytes,
    percent,
    plural,
    short,
    short_digests,
    significant,
    size,
)
from quantlib.store import Receipt, Store, read_lineage, run_facts
from quantlib.store.transaction import was_reused
from quantlib.tasks.outcome import TasksOutcome

_SHOWN_LINEARS = 10

Row = tuple[str, str]


def step_summary(store: Store, receipt: Receipt) -> str:
    """The page of a step: what came out, what it took, and what it was made of.

    Args:
        store: Where the step's files are.
        receipt: Of any step but plan, whose page is its estimate.

    Raises:
        StoreError: A file of the step is missing or damaged.
    """
    span = receipt.parameters.get("range")
    lines = [f"# {receipt.step}{f' {span}' if span else ''}", ""]
    lines += markdown_list(_FACTS[receipt.step](receipt))
    if LINEARS_NAME in receipt.files:
        lines += _linears(store, receipt)
    if TASKS_NAME in receipt.files:
        lines += _scores(TasksOutcome.model_validate(read_json(store, receipt, TASKS_NAME)))
    run = run_facts(store, receipt)
    made_of = (f"{name} {read.digest}" for name, read in receipt.inputs.items())
    rows = [
        ("made", _made(store, receipt)),
        *((f"made: {each.step}", _made(store, each)) for each in _halves(store, receipt)),
        ("largest memory", mebibytes(run.get("peak_mib"))),
        ("files", _files(receipt)),
        ("in the store", store.full_address(receipt.address)),
        ("receipt", receipt.digest()),
        ("made of", ", ".join(made_of) or ABSENT),
    ]
    lines += ["## This step", "", *markdown_list(rows)]
    lines += [f"- {remark}" for remark in run.get("remarks", ())]
    page = short_digests("\n".join(lines).rstrip() + "\n")
    if address := receipt.facts.get("address"):
        # Whole, to be copied: a panel scrolls such lines sideways.
        uri = receipt.facts.get("storage_uri")
        line = f"quantlib verify {address}" if _is_folder(address) else f"storageUri: {uri}"
        page += f"\n```\n{line}\n```\n"
    return page


def _is_folder(address: str) -> bool:
    """Whether what is published there is a folder, which the other commands read."""
    return not address.startswith(("oci://", "hf://"))


def _made(store: Store, receipt: Receipt) -> str:
    """How a step came to its result: by its own work, or by that of an earlier run."""
    run = run_facts(store, receipt)
    made = f"in {duration(run.get('seconds'))}"
    if ended := run.get("ended"):
        made += f" on {ended[:16].replace('T', ' ')} UTC"
    return f"found in the store, made {made}" if was_reused(store, receipt) else made


def _halves(store: Store, receipt: Receipt) -> list[Receipt]:
    """The steps that ran the models which validate judges."""
    if receipt.step != "validate":
        return []
    read = {reference.digest for reference in receipt.inputs.values()}
    ran = ("reference", "rounding", "comparison")
    found = (each for each in read_lineage(store, receipt) if each.step in ran)
    return [each for each in found if each.digest() in read]


def _fetched(receipt: Receipt) -> Iterator[Row]:
    facts = receipt.facts
    yield "model type", facts["model_type"]
    for name, value in facts["source"].items():
        if value is not None:
            yield name, counted(value)
    yield "weights", f"{size(facts['bytes'])} in {plural(facts['tensors'], 'tensor')}"
    yield "digest", facts["digest"]


def _calibrated(receipt: Receipt) -> Iterator[Row]:
    text = receipt.facts.get("text")
    if text is None:
        yield "calibration", "none: the method looks at no activations"
        return
    yield "text", text["source"]
    yield "read", text["read"]["in_words"]
    if text.get("opening"):
        yield "every window begins with", " ".join(text["opening"])
    yield "written", text["written"]
    if text["kinds"]:
        yield "tokens by kind of document", counted(text["kinds"])
    yield "digest of its files", text["content"]
    yield "digest of its tokens", text["digest"]
    illustrated = text.get("with_images", 0)
    windows = (
        f"{plural(text['samples'] - illustrated, 'window')} of {integer(text['sequence_length'])}"
    )
    if illustrated:
        windows += f", and {plural(illustrated, 'row')} with images"
    yield "tokens", f"{integer(text['tokens'])}: {windows}"
    yield "ranges start at blocks", ", ".join(map(str, receipt.parameters["boundaries"])) or ABSENT
    observed = receipt.parameters["statistics_to"]
    yield "channel statistics", f"of {plural(observed, 'block')}" if observed else ABSENT
    if receipt.parameters.get("cached"):
        yield "keys and values", "the largest magnitudes, for scales of an FP8 cache"


def _measured(receipt: Receipt) -> Iterator[Row]:
    parts = receipt.parameters["units"]
    yield "parts", f"{integer(len(parts))}, of {plural(len({p[0] for p in parts}), 'block')}"
    yield "schemes", ", ".join(receipt.parameters["candidates"])
    yield "tried on", f"{integer(receipt.facts['tokens'])} calibration tokens"


def _chosen(receipt: Receipt) -> Iterator[Row]:
    yield "budget", receipt.parameters["budget"]
    yield "bits per weight", significant(receipt.facts["bits"], 4)
    kl = significant(receipt.facts["predicted_kl"], 2)
    yield "predicted KL divergence", f"{kl} nats, of rounding to nearest"
    for name, count in receipt.facts["chosen"].items():
        yield name, plural(count, "part")


def _smoothed(receipt: Receipt) -> Iterator[Row]:
    alphas = receipt.facts.get("alpha")
    if alphas is None:
        yield "outlier suppression", "none, or one without a strength"
        return
    used = [alpha for alpha in alphas if alpha is not None]
    for alpha in sorted(set(used)):
        yield f"alpha {short(alpha)}", plural(used.count(alpha), "block")
    yield "left alone", plural(len(alphas) - len(used), "block")


def _quantized(receipt: Receipt) -> Iterator[Row]:
    quantization = receipt.parameters["quantization"]
    weights = quantization["weights"]
    yield "method", quantization["method"]
    yield "bits", str(weights["bits"])
    yield "group size", str(weights["group_size"])
    yield "format", quantization["format"]


def _merged(receipt: Receipt) -> Iterator[Row]:
    before, after = receipt.facts["bytes_original"], receipt.facts["bytes_quantized"]
    yield "weights", f"{size(before)} before, {size(after)} now"
    yield (
        "quantized blocks",
        f"{len(receipt.facts['quantized_blocks'])} of {receipt.facts['blocks']}",
    )
    for part, count in receipt.facts.get("carried", {}).items():
        yield f"kept as it is: {part}", plural(count, "tensor")
    yield "checkpoint", receipt.facts["checkpoint_digest"]


def _validated(receipt: Receipt) -> Iterator[Row]:
    facts = receipt.facts
    yield "verdict", facts["verdict"]
    yield "reason", facts["reason"]
    original, quantized = facts["perplexity_original"], facts["perplexity_quantized"]
    yield "perplexity", f"{significant(original)} before, {significant(quantized)} now"
    error = significant(facts["kl_standard_error"], 2)
    yield "mean KL divergence", f"{significant(facts['kl_mean'])} ± {error} nats"
    if "kl_rounding" in facts:
        yield "that of plain rounding", f"{significant(facts['kl_rounding'])} nats"
    yield "same most likely token", percent(facts["top1_agreement"])
    if "draft_acceptance_quantized" in facts:
        before, now = facts["draft_acceptance_original"], facts["draft_acceptance_quantized"]
        yield "drafted tokens accepted", f"{percent(before)} before, {percent(now)} now"
    if "drafting_refused" in facts:
        yield "drafted tokens accepted", f"not measured: {facts['drafting_refused']}"
    yield "judged by", f"{facts['engine']} {facts['engine_version']} on {facts['device']}"


def _tasks(receipt: Receipt) -> Iterator[Row]:
    yield "verdict", receipt.facts["verdict"]
    yield "reason", receipt.facts["reason"]


def _published(receipt: Receipt) -> Iterator[Row]:
    yield "published at", receipt.facts["address"]
    yield "checkpoint", receipt.facts["checkpoint_digest"]
    if _is_folder(receipt.facts["address"]):
        yield "promote it", "`quantlib promote` and the address below"


def _text(receipt: Receipt) -> Iterator[Row]:
    yield "text", receipt.parameters["name"]
    for name, value in receipt.parameters["origin"].items():
        yield name, str(value)
    yield "digest", receipt.facts["digest"]


_FACTS: dict[str, Callable[[Receipt], Iterator[Row]]] = {
    "fetch": _fetched,
    "text": _text,
    "calibrate": _calibrated,
    "measure": _measured,
    "choose": _chosen,
    "smooth": _smoothed,
    "quantize": _quantized,
    "merge": _merged,
    "validate": _validated,
    "tasks": _tasks,
    "publish": _published,
}


def _linears(store: Store, receipt: Receipt) -> list[str]:
    """How well linears were quantized, the worst ones by name."""
    records: list[dict[str, Any]] = read_json(store, receipt, LINEARS_NAME)
    linears = [LinearError.model_validate(record) for record in records]
    if not linears:
        return []
    worst = sorted(linears, key=_error, reverse=True)[:_SHOWN_LINEARS]
    raised = sum(linear.damping_rose for linear in linears)
    return [
        f"{plural(len(linears), 'linear')}, mean relative error "
        f"{significant(sum(map(_error, linears)) / len(linears), 3)}"
        + (f"; damping had to rise for {integer(raised)}" if raised else "")
        + ". The least faithful:",
        "",
        *markdown_table(
            ("block", "linear", "relative error"),
            [(str(one.block), one.linear, significant(_error(one), 3)) for one in worst],
        ),
    ]


def _scores(outcome: TasksOutcome) -> list[str]:
    """What each task gave."""
    rows = [
        (
            task.name,
            integer(task.items),
            *(percent(each.score) for each in (task.original, task.again, task.quantized)),
            percent(task.recovery.value if task.recovery else None),
        )
        for task in outcome.tasks
    ]
    header = ("task", "items", "original", "original again", "quantized", "kept")
    return [*markdown_table(header, rows), ""]


def _error(linear: LinearError) -> float:
    """Of the output, or of the weight where the method looked at no inputs."""
    if linear.relative_error is None:
        return linear.relative_weight_error
    return linear.relative_error


def _files(receipt: Receipt) -> str:
    total = sum(record.bytes for record in receipt.files.values())
    return f"{plural(len(receipt.files), 'file')}, {size(total)}"
