"""texts: brings the texts of a recipe into the store; windows: turns them into tokens, once.

What comes after reads the store only, so that one's own text works on a cluster as it does at home,
and a step's key holds what a text says, not where it lay.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StepError, StoreError, collected
from quantlib.models import BaseModelAdapter
from quantlib.recipe import AskedRecipe, CalibrationSection
from quantlib.report.text import plural
from quantlib.sources.pinned import content_digest
from quantlib.steps.windows import ILLUSTRATED, write_samples, write_tokens
from quantlib.store import FileRecord, Receipt, StepOutput, Store, commit_step, read_lineage
from quantlib.task_section import TaskSection, TasksSection
from quantlib.tasks.items import find_items, purpose_of, read_items
from quantlib.text.addresses import Purpose, Text
from quantlib.text.files import TextFile, stored_file
from quantlib.text.formats import kind_of
from quantlib.text.found import FoundText
from quantlib.text.making import make_samples, make_windows, windows_key
from quantlib.text.places import digest_of_files, find_text, gather
from quantlib.text.processor import OpenImage
from quantlib.text.tokenizer import load_tokenizer
from quantlib.text.wanted import Section, wanted_texts
from quantlib.text.windows import Windowing, Windows, require_documents, require_known
from quantlib.text.writing import Writing

STEP = "texts"
TEXT_STEP = "text"
WINDOWS_STEP = "windows"

EVALUATION_SEED = 0
"""Held-out windows do not depend on the recipe's seed: runs stay comparable."""


def bring_texts(store: Store, recipe: AskedRecipe, *, validated: bool = True) -> Receipt:
    """Brings the texts that a recipe needs into the store.

    Args:
        store: Where the files go.
        recipe: Names the texts.
        validated: Whether the checkpoint will be compared with the original.

    Returns:
        A receipt that rests on one for each text, whose files are the text's.

    Raises:
        InvalidInputError: A text is not there or cannot be read; all problems at once.
        StepError: The hub cannot be reached.
        StoreError: Object storage cannot be read.
    """
    found: dict[Purpose, FoundText] = {}
    problems: list[Problem] = []
    sections = wanted_texts(recipe, validated=validated)
    for purpose, section in sections.items():
        try:
            found[purpose] = find_text(Text.of(section))
        except InvalidInputError as error:
            problems += error.problems
    items: dict[str, tuple[TaskSection, FoundText]] = {}
    for task in recipe.tasks.run if validated else ():
        with collected(problems):
            items[purpose_of(task)] = task, find_items(task)
    if problems:
        raise InvalidInputError(problems)
    texts: dict[str, Receipt] = {}
    for called, (task, text) in items.items():
        with collected(problems):
            texts[called] = _bring(store, called, text, None, partial(read_items, task))
    if problems:
        raise InvalidInputError(problems)
    for purpose, text in found.items():
        texts[purpose] = _bring(store, purpose, text, images_of(sections[purpose]))
    return commit_step(store, STEP, {}, texts, lambda output: None)


def _bring(
    store: Store,
    purpose: str,
    text: FoundText,
    images: Windowing | None,
    check: Callable[[list[TextFile]], object] | None = None,
) -> Receipt:
    with gather(text, images) as gathered:
        if check is not None:
            check(gathered.files)
        paths, beside = gathered.paths, gathered.images
        content = digest_of_files(paths)

        def work(output: StepOutput) -> None:
            for name, path in paths.items():
                # Copied, not linked: people write on in their texts.
                with path.open("rb") as source, output.local(name).open("wb") as target:
                    hashed = hashlib.sha256()
                    while chunk := source.read(1 << 20):
                        hashed.update(chunk)
                        target.write(chunk)
                output.add(name, sha256=hashed.hexdigest())
            if _content(output.files) != content:
                raise StepError(STEP, f"{text.name} was changed while it was read; run again")
            output.facts = {"digest": content}
            if beside.met:
                output.facts[ILLUSTRATED] = beside.rows

        parameters = {"name": text.name, "origin": text.origin, "content": content}
        receipt = commit_step(store, TEXT_STEP, parameters, {}, work)
    more = f"; {text.more} more are not taken, these are enough" if text.more else ""
    size = sum(record.bytes for record in receipt.files.values())
    files = f"{len(receipt.files)} files" if len(receipt.files) > 1 else "1 file"
    if beside.rows:
        named = plural(len(beside.names), "image")
        files += f", {named} of {plural(beside.rows, 'row')} among them"
    if missing := beside.missing:
        more += f"; images of {plural(len(missing), 'row')} are not there ({missing[0]})"
    kind = "items" if check else "text"
    _say(f"{purpose} {kind}: {text.name}: {files}, {size:,} bytes{more}")
    return receipt


def make_all_windows(
    store: Store,
    recipe: AskedRecipe,
    texts: Receipt,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
    *,
    validated: bool = True,
) -> tuple[dict[str, Receipt], list[Problem]]:
    """Turns the texts of a recipe into windows of tokens.

    Args:
        store: Where the steps' files are.
        recipe: Which windows are wanted.
        texts: What :func:`bring_texts` gave.
        checkpoint: The model, for its tokenizer.
        adapter: Its family.
        validated: Whether the checkpoint will be compared with the original.

    Returns:
        A receipt of windows for each text, and why there is none.
    """
    made: dict[str, Receipt] = {}
    problems = prompt_problems(recipe, checkpoint, adapter) if validated else []
    for purpose, section in wanted_texts(recipe, validated=validated).items():
        text = input_of(store, texts, purpose)
        try:
            made[purpose] = _windows(store, section, text, checkpoint, adapter)
        except InvalidInputError as error:
            problems += error.problems
            continue
        facts = made[purpose].facts
        opening = f"; every window begins with {' '.join(facts['opening'])}"
        _say(
            f"{purpose} text: {text.parameters['name']}: {facts['read']['in_words']}; "
            f"{Writing(**facts['writing']).in_words()}{opening if facts['opening'] else ''}"
        )
    return made, problems


def _windows(
    store: Store,
    section: Section,
    text: Receipt,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
) -> Receipt:
    windowing, vocabulary = windowing_of(section), vocabulary_of(checkpoint, adapter)
    source, name = checkpoint.source, text.parameters["name"]
    open_image = opener_of(store, text) if ILLUSTRATED in text.facts else None

    def work(output: StepOutput) -> None:
        content, files = text.parameters["content"], files_of(store, text)
        made, writing = make_windows(
            Text.of(section).name, content, files, source, windowing, vocabulary, open_image
        )
        write_tokens(output, made.tokens, made.kinds)
        output.facts = {
            "source": name,
            "content": content,
            "shipped": text.parameters["origin"]["kind"] == "shipped",
            "read": made.tally.to_json(),
            "opening": list(made.opening),
            "writing": asdict(writing),
            "kind_names": list(made.kind_names),
        }
        if made.illustrated and open_image is not None:
            samples = make_samples(files, source, windowing, open_image, made)
            output.facts[ILLUSTRATED] = asdict(write_samples(output, samples))

    parameters = windows_key(source, windowing, vocabulary, illustrated=open_image is not None)
    return commit_step(store, WINDOWS_STEP, parameters, {"text": text}, work)


def input_of(store: Store, receipt: Receipt, name: str) -> Receipt:
    """The receipt that another one names as its input.

    Raises:
        InvalidInputError: It names none.
        StoreError: The receipt is missing or damaged.
    """
    if name not in receipt.inputs:
        raise InvalidInputError.one(f"{receipt.step} {receipt.key[:12]}", f"has no {name}")
    wanted = receipt.inputs[name]
    return next(each for each in read_lineage(store, receipt) if each.reference() == wanted)


def asked_items(
    store: Store, section: TasksSection, texts: Receipt
) -> dict[str, list[dict[str, Any]]]:
    """The items of each task, from the store.

    Raises:
        InvalidInputError: A row is no item of its task.
    """
    return {
        task.name: read_items(task, files_of(store, input_of(store, texts, purpose_of(task))))
        for task in section.run
    }


def text_problems(
    recipe: AskedRecipe,
    source: FileSource,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
    *,
    validated: bool = True,
) -> list[Problem]:
    """Why the texts of a recipe do not do for a model, found without a store.

    Texts that are elsewhere are looked for, and read only when they are in the store.
    """
    problems = prompt_problems(recipe, checkpoint, adapter) if validated else []
    for section in wanted_texts(recipe, validated=validated).values():
        try:
            found = find_text(Text.of(section))
            if not found.is_remote:
                _windows_of(found, section, source, vocabulary_of(checkpoint, adapter))
        except InvalidInputError as error:
            problems += error.problems
    return problems


def windows_without_store(section: Section, source: FileSource) -> Windows:
    """The windows of a recipe's section, as the steps make them.

    Args:
        section: Which windows of which text.
        source: The model, for its tokenizer.

    Raises:
        InvalidInputError: The text cannot be read or has too few tokens.
    """
    return _windows_of(find_text(Text.of(section)), section, source, None)


def _windows_of(
    found: FoundText, section: Section, source: FileSource, vocabulary: int | None
) -> Windows:
    name, windowing = Text.of(section).name, windowing_of(section)
    with gather(found, images_of(section)) as gathered:
        content, files = digest_of_files(gathered.paths), gathered.files
        open_image = gathered.open_image if gathered.images.met else None
        made, writing = make_windows(
            name, content, files, source, windowing, vocabulary, open_image
        )
    shipped = found.origin["kind"] == "shipped"
    read = made.tally.to_json()
    return Windows(
        made.tokens,
        found.name,
        shipped,
        content,
        read,
        made.opening,
        writing,
        made.kinds,
        made.kind_names,
    )


def is_illustrated(recipe: AskedRecipe) -> bool:
    """Whether a recipe's calibration text holds images; False of one that is elsewhere."""
    section = wanted_texts(recipe, validated=False).get("calibration")
    if section is None or (found := find_text(Text.of(section))).is_remote:
        return False
    with gather(found, images_of(section)) as gathered:
        return bool(gathered.images.rows)


def unread_problems(recipe: AskedRecipe, *, validated: bool = True) -> list[Problem]:
    """Why the texts of a recipe do not do for any model: none is there, or no row is of use."""
    problems: list[Problem] = []
    for section in wanted_texts(recipe, validated=validated).values():
        try:
            found = find_text(Text.of(section))
            if not found.is_remote:
                with gather(found) as gathered:
                    require_documents(Text.of(section).name, gathered.files, section.text_field)
        except InvalidInputError as error:
            problems += error.problems
        except StoreError as error:
            problems.append(Problem(error.address, error.what))
    return problems


def prompt_problems(
    recipe: AskedRecipe, checkpoint: Checkpoint, adapter: BaseModelAdapter
) -> list[Problem]:
    """Prompts that hold a token which the model has no embedding of."""
    try:
        tokenizer, vocabulary = (
            load_tokenizer(checkpoint.source),
            vocabulary_of(checkpoint, adapter),
        )
        for index, prompt in enumerate(recipe.validation.prompts):
            ids = np.asarray(tokenizer.encode(prompt).ids, dtype=np.int64)
            require_known(ids, vocabulary, tokenizer, f"validation.prompts[{index}]")
    except InvalidInputError as error:
        return list(error.problems)
    return []


def windowing_of(section: Section) -> Windowing:
    """The windows that a section of a recipe asks for."""
    if isinstance(section, CalibrationSection):
        seed, most = section.seed, 0
    else:
        seed, most = EVALUATION_SEED, section.max_samples
    return Windowing(
        section.num_samples,
        section.sequence_length,
        seed,
        section.text_field,
        section.content,
        section.document_end,
        most,
    )


def vocabulary_of(checkpoint: Checkpoint, adapter: BaseModelAdapter) -> int | None:
    """Rows of a model's embedding; None where it has none, which is refused elsewhere."""
    name = f"{adapter.embedding}.weight"
    return checkpoint.info(name).shape[0] if name in checkpoint.tensors else None


def images_of(section: Section) -> Windowing | None:
    """The windows of a section that may hold images; None where models are given none."""
    return windowing_of(section) if isinstance(section, CalibrationSection) else None


def files_of(store: Store, text: Receipt) -> list[TextFile]:
    """The files of a text in the store, without the images that it names."""
    return [stored_file(store, text, name) for name in text.files if kind_of(name)]


def opener_of(store: Store, text: Receipt) -> OpenImage:
    """What opens the images in the store that a text names."""

    def open_image(name: str) -> BinaryIO | None:
        return stored_file(store, text, name).open() if name in text.files else None

    return open_image


def _content(files: Mapping[str, FileRecord]) -> str:
    return content_digest((name, record.sha256) for name, record in files.items())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
