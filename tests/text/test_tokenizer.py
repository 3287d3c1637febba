import builtins
import json
from pathlib import Path

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.text.tokenizer import load_tokenizer, tokenizer_digests


def test_code_of_a_model_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(builtins, "input", asked)
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Tokenizer: pass\n")
    config = {
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
        "tokenizer_class": "Tokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", **config}))
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InvalidInputError, match=r"is missing, and the model's other files hold no"):
        load_tokenizer(FolderSource(tmp_path))
    assert not ran.exists()


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(InvalidInputError, match=r"tokenizer.json: cannot be read"):
        load_tokenizer(FolderSource(tmp_path))


def test_what_decides_the_tokens_is_in_the_digests(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    first = tokenizer_digests(FolderSource(tmp_path))
    assert list(first) == ["chat_template.jinja", "tokenizer.json"]
    (tmp_path / "chat_template.jinja").write_text("other")
    assert tokenizer_digests(FolderSource(tmp_path)) != first
    (tmp_path / "tokenizer.json").unlink()
    assert "config.json" in tokenizer_digests(FolderSource(tmp_path))
