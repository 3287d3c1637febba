"""Writes quantlib/models/vllm.json: what the installed vLLM makes of names in checkpoints.

    python scripts/vllm_table.py                                  # after a change of vLLM's pin
    python scripts/vllm_table.py --check                          # is the file of this vLLM?
    python scripts/vllm_table.py --check llama granitemoehybrid   # some models only

Every architecture is looked at by a tiny model (scripts/vllm_models.py), which vLLM builds and
loads (scripts/vllm_probe.py); nothing is computed. What vLLM refuses is listed with its words, and
so is what it loads into nothing. The names of all classes that it has stand in the file too. About
ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "quantlib" / "models" / "vllm.json"
_ROW_NAME = "row.json"
_SECONDS = 120
"""How long one model may take."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
sys.path.insert(0, str(ROOT))


def look_at(name: str) -> dict[str, Any]:
    """What vLLM makes of a tiny model.

    Returns:
        The row of its architecture, or ``error`` with words.
    """
    row, images = _look_apart(name), True
    if "processor" in row.get("error", ""):
        # What reads images needs files that a tiny model lacks: without it, then.
        images = False
        row = _look_apart(name, images=images)
    if row and not row.get("head") and "error" not in row:
        # A head that is the embedding is quantized as one of its own.
        row["head"] = _look_apart(name, images=images, untied=True).get("head", [])
    return row


def _look_apart(name: str, images: bool = True, untied: bool = False) -> dict[str, Any]:
    """The same in a process of its own, since vLLM remembers models."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            _look_and_leave(name, Path(folder), images, untied)
        _, status = os.waitpid(child, 0)
        try:
            return json.loads((Path(folder) / _ROW_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"error": f"the process ended with {os.waitstatus_to_exitcode(status)}"}


def _look_and_leave(name: str, folder: Path, images: bool, untied: bool) -> None:
    from vllm_models import untie, write
    from vllm_probe import probe
    from vllm_rows import row

    signal.alarm(_SECONDS)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    found: dict[str, Any] = {}
    try:
        write(name, folder / "model")
        if untied:
            untie(folder / "model")
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        (found["architecture"],) = config["architectures"]
        found |= row(probe(folder / "model", images))
    except BaseException as error:
        found["error"] = _in_words(error)
    (folder / _ROW_NAME).write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


def _in_words(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).partition(" [type=")[0]
    return ", ".join([f"{type(error).__name__}: {text[:200]}", *getattr(error, "__notes__", ())])


def merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of what models of some architectures gave: all of one are one row."""
    found: dict[str, Any] = {}
    for row in rows:
        whole = found.setdefault(row["architecture"], {})
        for part, value in row.items():
            if part in ("architecture", "lost", "unmet") or not value:
                continue
            if isinstance(value, dict):
                known = whole.setdefault(part, {})
                for name, content in value.items():
                    known[name] = _united(known.get(name), content)
            else:
                whole[part] = _united(whole.get(part), value)
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def _united(known: Any, more: Any) -> Any:
    if isinstance(known, list) and isinstance(more, list):
        return known + [each for each in more if each not in known]
    return more


def main() -> int:
    """Writes the table, or compares it; 1 where it is of another vLLM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="models to look at; all, without a name")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    if arguments.names and not arguments.check:
        parser.error("the table is written as a whole: names go with --check")
    os.environ |= _ENVIRONMENT

    from quantlib.evaluation.vllm_engine import preload

    preload()
    from vllm_models import model_names

    rows = []
    for name in arguments.names or model_names():
        row = look_at(name)
        print(f"{name}: {_summary(row)}", flush=True)
        if "error" not in row:
            rows.append(row)
    made = merge(rows)
    if arguments.check:
        return _compare(made, whole=not arguments.names)
    content = {"vllm": _version(), "known": _known(), "architectures": made}
    TABLE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(made)} architectures, {TABLE.stat().st_size} bytes")
    return 0


def _summary(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    lost = f"; loads nothing of {', '.join(row['lost'])}" if row["lost"] else ""
    unmet = f"; has nothing for {', '.join(row['unmet'])}" if row["unmet"] else ""
    return f"{row['architecture']} as {row['class']}{lost}{unmet}"


def _compare(made: dict[str, Any], whole: bool) -> int:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    known = table["architectures"]
    wrong = [name for name, row in made.items() if not within(row, known.get(name, {}))]
    if whole:
        wrong = sorted({*table["known"]} ^ {*_known()})
        wrong += sorted(name for name in {*known, *made} if known.get(name) != made.get(name))
    if wrong:
        print(
            f"{TABLE.name} is of vLLM {table['vllm']}, and {_version()} differs for "
            f"{', '.join(wrong)}: run python scripts/vllm_table.py",
            file=sys.stderr,
        )
    return bool(wrong)


def within(row: Any, known: Any) -> bool:
    """Whether a row of one model is part of its architecture's, which has those of all."""
    if isinstance(row, dict) and isinstance(known, dict):
        return all(name in known and within(part, known[name]) for name, part in row.items())
    if isinstance(row, list) and isinstance(known, list):
        return all(part in known for part in row)
    return bool(row == known)


def _known() -> list[str]:
    """The architectures that vLLM has classes of its own for."""
    from vllm.model_executor.models import ModelRegistry

    return sorted(ModelRegistry.get_supported_archs())


def _version() -> str:
    import vllm

    return str(vllm.__version__)


if __name__ == "__main__":
    sys.exit(main())
