from pathlib import Path

import pytest

from quantlib.config import load_config
from quantlib.errors import InvalidInputError


@pytest.mark.parametrize("name", ["r.yaml", "r.yml", "r.json", "R.JSON"])
def test_formats_are_known_by_their_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"num_ranges": 3}')
    assert load_config(tmp_path / name) == {"num_ranges": 3}


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("# all defaults\n")
    assert load_config(tmp_path / "r.yaml") == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.yaml", "a: [", "cannot be parsed"),
        ("r.yaml", "a: !!python/object/apply:os.getcwd []", "cannot be parsed"),
        ("r.json", "{", "cannot be parsed"),
        ("r.yaml", "- 1", "does not hold a mapping"),
        ("r.ini", "", "unknown config format 'ini'; known: json, yaml, yml"),
        ("recipe", "", "unknown config format ''; known: json, yaml, yml"),
        ("missing.yaml", None, "cannot be read"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load_config(tmp_path / name)
