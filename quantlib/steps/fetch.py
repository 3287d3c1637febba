"""fetch: brings a model into the store, examined and described, and the texts of a recipe.

Nothing but weights in safetensors, the config and the tokenizer is taken; code that a model brings
is neither copied nor run.
"""

from __future__ import annotations

from pathlib import Path

from quantlib.checkpoint.source import FileSource, FolderSource, StoreSource
from quantlib.errors import InvalidInputError
from quantlib.report.summary import step_summary
from quantlib.runtime.progress import progress_bar
from quantlib.sources import (
    FolderAddress,
    GgufAddress,
    HubAddress,
    S3Address,
    parse_address,
    source_problems,
)
from quantlib.sources.folder import examine_folder
from quantlib.sources.gguf import convert_gguf
from quantlib.sources.gguf_model import open_gguf
from quantlib.sources.inspection import Kind, model_facts, tokenizer_problems
from quantlib.sources.pinned import content_digest, require_pinned, split_pin
from quantlib.sources.scan import ShowProgress, hash_and_scan
from quantlib.steps.contract import StepCall
from quantlib.steps.texts import bring_texts
from quantlib.store import Receipt, StepOutput, Store, commit_step, open_store, read_lineage
from quantlib.store.receipt import files_digest

STEP = "fetch"


def fetch(
    store: Store, source: str, progress: ShowProgress = progress_bar, *, tokenizer: bool = True
) -> Receipt:
    """Brings a model into the store.

    The receipt depends on the model's content alone: equal content in another folder, or a commit
    that was named by its branch, gives an equal receipt.

    Args:
        store: Where the files go.
        source: A folder, a ``.gguf`` file, ``hf://org/name@revision``, or ``s3://bucket/prefix``;
            with ``#sha256:…`` after it, as the watcher gives it, nothing else is taken.
        progress: Shows how far it is.
        tokenizer: Whether it has to have a tokenizer, since it will be given text.

    Returns:
        The receipt; its facts are those of :func:`quantlib.sources.inspection.model_facts`.

    Raises:
        InvalidInputError: The source is no model that can be quantized; all problems at once, and
            nothing was written to the store.
        StepError: The hub cannot be reached, or the source is pinned and has changed.
        StoreError: Object storage cannot be read.
    """
    _, pinned = split_pin(source)
    match parse_address(source):
        case FolderAddress(path):
            return _fetch_folder(store, path, pinned, progress, tokenizer)
        case GgufAddress(path):
            return _fetch_gguf(store, path, pinned, progress)
        case HubAddress() as address:
            return _fetch_hub(store, address, progress, tokenizer)
        case S3Address(prefix):
            return _fetch_s3(store, prefix, pinned, progress, tokenizer)


def main(call: StepCall) -> None:
    recipe, store = call.recipe_choice(), call.store()
    source = call.text("source") or recipe.model or ""
    if problems := source_problems(source):
        raise InvalidInputError(problems)
    # First, since they are small: what is not there is refused before the model is fetched.
    texts = bring_texts(store, recipe)
    model = fetch(store, source)
    call.write_parameter("checked_recipe", recipe.canonical_json())
    call.write_receipt("model", store, model)
    call.write_receipt("texts", store, texts)
    pages = [step_summary(store, model)]
    pages += [step_summary(store, text) for text in read_lineage(store, texts) if text.files]
    call.write_summary("\n".join(pages))


def _fetch_folder(
    store: Store, path: Path, pinned: str | None, progress: ShowProgress, tokenizer: bool
) -> Receipt:
    if tokenizer and path.is_dir():
        _require_tokenizer(FolderSource(path))
    model = examine_folder(path, progress)
    digests = ((name, record.sha256) for name, record in model.files.items())
    require_pinned(str(path), pinned, content_digest(digests))
    parameters = {"source_kind": "folder", "content": files_digest(model.files)}

    def work(output: StepOutput) -> None:
        model.import_into(output)
        output.facts |= model_facts({"kind": "folder"}, model.kind, output.files)

    return commit_step(store, STEP, parameters, {}, work)


def _fetch_gguf(store: Store, path: Path, pinned: str | None, progress: ShowProgress) -> Receipt:
    model = open_gguf(path)
    with progress("Reading", path.stat().st_size, "bytes") as advance:
        digest, _ = hash_and_scan(path, (), advance)
    require_pinned(str(path), pinned, content_digest([(path.name, digest)]))

    def work(output: StepOutput) -> None:
        types = convert_gguf(model, output, progress)
        source = {"kind": "gguf", "sha256": digest, "types": types}
        kind = Kind(model.config["model_type"])
        output.facts |= model_facts(source, kind, output.files)

    parameters = {"source_kind": "gguf", "sha256": digest}
    return commit_step(store, STEP, parameters, {}, work)


def _require_tokenizer(files: FileSource) -> None:
    if problems := tokenizer_problems(files):
        raise InvalidInputError(problems)


def _fetch_hub(
    store: Store, address: HubAddress, progress: ShowProgress, tokenizer: bool
) -> Receipt:
    from quantlib.sources.hub import bring_from_hub, list_files, resolve_commit

    commit = resolve_commit(address)

    def work(output: StepOutput) -> None:
        files = list_files(address, commit)
        if tokenizer:
            _require_tokenizer(files)
        kind = bring_from_hub(output, files, progress)
        source = {"kind": "hub", "repo": address.repo, "commit": commit}
        if files.license:
            source["license"] = files.license
        output.facts |= model_facts(source, kind, output.files)

    parameters = {"source_kind": "hub", "repo": address.repo, "revision": commit}
    return commit_step(store, STEP, parameters, {}, work)


def _fetch_s3(
    store: Store, address: str, pinned: str | None, progress: ShowProgress, tokenizer: bool
) -> Receipt:
    from quantlib.sources.s3 import bring_from_s3, versions_digest
    from quantlib.store.s3 import S3Store

    source = open_store(address)
    assert isinstance(source, S3Store)
    files = StoreSource(source)
    if tokenizer:
        _require_tokenizer(files)
    versions = versions_digest(files)
    require_pinned(address, pinned, versions)

    def work(output: StepOutput) -> None:
        kind = bring_from_s3(output, source, files, progress)
        facts = {"kind": "s3", "address": source.address}
        output.facts |= model_facts(facts, kind, output.files)

    parameters = {
        "source_kind": "s3",
        "address": source.address,
        "versions": versions,
    }
    return commit_step(store, STEP, parameters, {}, work)
