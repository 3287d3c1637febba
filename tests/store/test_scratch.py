"""Scratch folders are removed by somebody, whenever their owner is killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantlib.store.scratch import Scratch, abandoned

KEY = "0123456789abcdef0123"
CHILD = textwrap.dedent(
    """
    import fcntl, os, shutil, sys
    from pathlib import Path
    from quantlib.store.scratch import Scratch

    def killed(*_, **__):
        os._exit(9)

    owner, name = {
        "locking": (fcntl, "flock"),
        "making": (Path, "mkdir"),
        "removing": (os, "rmdir"),
        "unlocking": (Path, "unlink"),
    }[sys.argv[3]]
    setattr(owner, name, killed)
    with Scratch(Path(sys.argv[1]), sys.argv[2]) as folder:
        (folder / "half").write_bytes(b"half")
    """
)


@pytest.mark.parametrize("moment", ["locking", "making", "removing", "unlocking"])
def test_what_a_killed_owner_leaves_is_removed_by_the_next(moment: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), KEY, moment]
    assert subprocess.run(command, check=False).returncode == 9
    assert list(tmp_path.iterdir())
    with Scratch(tmp_path, "another-step-with-its-own-key"):
        assert len(list(abandoned(tmp_path))) == 1
    with Scratch(tmp_path, KEY) as folder:
        assert folder.is_dir()
        assert list(abandoned(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_is_left_alone(tmp_path: Path) -> None:
    def use(number: int) -> None:
        with Scratch(tmp_path, KEY) as folder:
            (folder / "mine").write_text(str(number))
            assert (folder / "mine").read_text() == str(number)
            assert [each.name for each in folder.iterdir()] == ["mine"]

    with Scratch(tmp_path, KEY) as first, ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(400)))
        assert first.is_dir()
    assert list(tmp_path.iterdir()) == []
