"""What docs/families.md is made of, for families that once could not be walked."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from quantlib.errors import InvalidInputError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def families_page() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    spec = spec_from_file_location("families_page", SCRIPTS / "families.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["families_page"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "afmoe",  # its config on the hub says what the code of transformers does anyway
        "deepseek_v4",  # a dict of positions without samples, tokens that every block reads
        "gemma4_unified",  # looks its embedding up where hidden states are given
        "git",  # a tower with as many blocks as the text, as near to the embedding
        "idefics3",  # takes the device of its tower for that of all
        "inkling_text",  # experts that all tokens go through, and no fold that can be tried
        "longcat_flash",  # two attentions in a block, so that another field counts blocks
        "mamba",  # no attention at all
        "paligemma",  # fields of images in the config of its text
        "qwen2_5_vl",  # a tower with as many blocks as the text has
        "xlnet",  # computes nothing on the meta device
        "xmod",  # the values decide which module computes what
    ],
)
def test_bit_for_bit(families_page: ModuleType, tmp_path: Path, name: str) -> None:
    row = families_page.compare(name, families_page.write(name, tmp_path / "model"))
    assert (row.difference, row.again) == (0, 0)


@pytest.mark.slow
def test_what_cannot_be_walked_is_refused_in_words(
    families_page: ModuleType, tmp_path: Path
) -> None:
    folder = families_page.write("blip", tmp_path / "model")
    with pytest.raises(InvalidInputError, match=r"cannot be walked: TypeError: .*pixel_values"):
        families_page.compare("blip", folder)
