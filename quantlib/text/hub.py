"""A data set on the hub: which files are its text, at a commit."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HFValidationError

from quantlib.errors import InvalidInputError, StepError
from quantlib.sources import HubAddress
from quantlib.sources.hub_errors import explained_errors
from quantlib.store.receipt import digest_of
from quantlib.text.addresses import HubText, Text
from quantlib.text.formats import kind_of
from quantlib.text.found import FoundText, take_enough

_CARD = "README.md"
_SPLITS = ("train", "test", "validation", "dev", "eval")
_CONVERTED = "refs/convert/parquet"


def find_dataset(text: Text, address: HubText) -> FoundText:
    """Finds the files of a data set.

    A path in the address names them. Without one, they are those that the data set's card gives the
    configuration and split, else those that are named after the split.

    Args:
        text: Which split is wanted.
        address: Where it is.

    Raises:
        InvalidInputError: There is no such data set, revision, configuration, split or file.
        StepError: The hub cannot be asked.
    """
    where = HubAddress(f"datasets/{address.repo}", address.revision)
    try:
        with explained_errors(where):
            info = HfApi(endpoint=constants.ENDPOINT).dataset_info(
                address.repo, revision=address.revision, files_metadata=True, timeout=30
            )
    except HFValidationError as error:
        raise InvalidInputError.one(text.name, f"is no name of a data set: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise StepError(
            "fetch", f"{where}: {constants.ENDPOINT} does not answer as a hub: check HF_ENDPOINT"
        ) from None
    commit = str(info.sha)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}

    def fetch(name: str, _: Path) -> Path:
        with explained_errors(where):
            return Path(
                hf_hub_download(
                    address.repo,
                    name,
                    repo_type="dataset",
                    revision=commit,
                    endpoint=constants.ENDPOINT,
                )
            ).resolve()

    if address.path:
        chosen = {
            name
            for name in sizes
            if name == address.path or name.startswith(f"{address.path.rstrip('/')}/")
        }
        if not chosen:
            raise InvalidInputError.one(text.name, f"has no {address.path} at {commit[:12]}")
    else:
        card = fetch(_CARD, Path()).read_text(encoding="utf-8") if _CARD in sizes else ""
        chosen = _files_of(text, address.config, card, sorted(sizes))
    if not any(map(kind_of, chosen)) and address.revision != _CONVERTED:
        raise InvalidInputError.one(
            text.name,
            "holds no file of a kind that is known",
            f"try hf://datasets/{address.repo}@{_CONVERTED}/…, where the hub keeps a copy in "
            "Parquet",
        )
    taken, more = take_enough(text, {name: sizes[name] for name in chosen})
    pinned = f"hf://datasets/{address.repo}@{commit}"
    origin = {"kind": "hub", "repo": address.repo, "commit": commit}
    return FoundText(
        f"{pinned}/{next(iter(taken))}" if len(taken) + more == 1 else pinned,
        origin,
        taken,
        digest_of([pinned, list(taken)]),
        more,
        fetch,
        sizes.__contains__,
    )


def _files_of(text: Text, config: str, card: str, names: list[str]) -> set[str]:
    """The files of a configuration and a split."""
    configs = _configs(card)
    if configs:
        chosen = _config(text, config, configs)
        patterns = _patterns(chosen.get("data_files"), text.split)
        folder = str(chosen.get("data_dir") or "").strip("/")
        if patterns:
            base = f"{folder}/" if folder else ""
            found = {
                name
                for name in names
                if any(fnmatch.fnmatchcase(name, base + pattern) for pattern in patterns)
            }
            return _required(text, found, names)
        if folder:
            names = [name for name in names if name.startswith(f"{folder}/")]
    elif config:
        names = [name for name in names if name.startswith(f"{config}/")]
        if not names:
            raise InvalidInputError.one(text.name, f"has no configuration {config!r}")
    known = [name for name in names if kind_of(name)]
    if not any(_names_split(name, split) for name in known for split in _SPLITS):
        # Files that name no split are all of them for training.
        return _required(text, set(known if text.split == "train" else ()), known)
    return _required(text, {name for name in known if _names_split(name, text.split)}, known)


def _required(text: Text, found: set[str], names: list[str]) -> set[str]:
    if not found and any(map(kind_of, names)):
        raise InvalidInputError.one(
            text.name,
            f"has no files of the split {text.split!r}",
            "set split, or name a file: hf://datasets/org/name@revision/path",
        )
    return found


def _configs(card: str) -> list[dict[str, Any]]:
    """The configurations that the head of a card lists."""
    match = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        head = None
    listed = head.get("configs") if isinstance(head, dict) else None
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _config(text: Text, name: str, configs: list[dict[str, Any]]) -> dict[str, Any]:
    by_name = {str(each.get("config_name", "default")): each for each in configs}
    default = next((str(each.get("config_name")) for each in configs if each.get("default")), None)
    for wanted in (name,) if name else (default, "default"):
        if wanted in by_name:
            return by_name[wanted]
    if not name and len(configs) == 1:
        return configs[0]
    raise InvalidInputError.one(
        text.name,
        f"has no configuration {name!r}" if name else "has several configurations",
        f"give org/name:CONFIG, with one of: {', '.join(by_name)}",
    )


def _patterns(data_files: Any, split: str) -> list[str]:
    """The patterns of a split, as a card writes them: a pattern, a list, or lists by split."""
    if isinstance(data_files, str):
        return [data_files] if split == "train" else ["/"]
    if not isinstance(data_files, list) or not data_files:
        return []
    if all(isinstance(each, str) for each in data_files):
        return data_files if split == "train" else ["/"]
    paths = [
        each.get("path")
        for each in data_files
        if isinstance(each, dict) and str(each.get("split")) == split
    ]
    flat = [path for each in paths for path in (each if isinstance(each, list) else [each])]
    return [str(path) for path in flat if path] or ["/"]  # matches no file


def _names_split(name: str, split: str) -> bool:
    return re.search(rf"(?:^|[^a-z]){re.escape(split)}(?:[^a-z]|$)", name.lower()) is not None
