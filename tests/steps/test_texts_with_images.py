"""Images come into the store with the text that names them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import images
from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.planning import Limits, estimate_run, find_hardware
from quantlib.planning.memory import calibrate_memory, quantize_memory
from quantlib.planning.model import model_sizes
from quantlib.recipe import Recipe
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import plan
from quantlib.steps.texts import bring_texts, files_of, input_of
from quantlib.steps.windows import read_samples, read_windows
from quantlib.store import LocalStore, Receipt, open_store

pytest.importorskip("torchvision")  # which the processors of images need

MakeRecipe = Callable[..., Recipe]


def brought(store: LocalStore, dataset: Path | str, samples: int = 8) -> Receipt:
    section = {"dataset": str(dataset), "num_samples": samples, "sequence_length": 64}
    recipe = parse_recipe({"calibration": section})
    return input_of(store, bring_texts(store, recipe, validated=False), "calibration")


def windows_of(store: LocalStore, recipe: Recipe, model: Receipt) -> Receipt:
    planned = plan(store, recipe, model, bring_texts(store, recipe), 0)
    return input_of(store, planned, "calibration")


def test_images_belong_to_the_text_that_names_them(
    store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = images.write_text(tmp_path / "a", 3)
    text = brought(store, path)
    assert set(text.files) == {"text.jsonl", *(f"pictures/{number}.png" for number in range(3))}
    assert text.facts["illustrated"] == 3
    assert [file.name for file in files_of(store, text)] == ["text.jsonl"]
    assert "4 files, 3 images of 3 rows among them" in capsys.readouterr().err
    # The same elsewhere is the same, and another image is another text.
    images.write_text(tmp_path / "b", 3)
    assert brought(store, tmp_path / "b").key == text.key
    images.picture(9).save(path.parent / "pictures" / "1.png")
    assert brought(store, path).key != text.key

    (path.parent / "pictures" / "0.png").unlink()
    text = brought(store, path)
    assert "pictures/0.png" not in text.files
    assert text.facts["illustrated"] == 2
    said = capsys.readouterr().err
    assert "images of 1 row are not there (pictures/0.png)" in said


def test_only_the_images_that_may_be_used_are_brought(store: LocalStore, tmp_path: Path) -> None:
    text = brought(store, images.write_text(tmp_path, 12), samples=2)
    assert len(text.files) == 1 + 4 * 2


def test_images_from_other_places(store: LocalStore, s3_address: str, tmp_path: Path) -> None:
    path = images.write_text(tmp_path, 2)
    bucket = open_store(f"{s3_address}/texts")
    for file in (path, *sorted((tmp_path / "pictures").iterdir())):
        bucket.put_bytes(file.read_bytes(), file.relative_to(tmp_path).as_posix())
    here = brought(store, path)
    for address in (f"{s3_address}/texts", f"{s3_address}/texts/text.jsonl"):
        assert brought(store, address).files == here.files


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.make("qwen3_vl", tmp_path_factory.mktemp("model"), chat_template=True)


def test_windows_are_the_same_however_a_row_holds_its_image(
    store: LocalStore, wrapper: Path, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    model, found = fetch(store, str(wrapper)), []
    path = images.write_text(tmp_path, 8)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    named, inline, packed = [], [], []
    for row in rows[:8]:
        parts = row["messages"][0]["content"]
        content = (tmp_path / parts[0]["image"]).read_bytes()
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        asked, said = parts[1]["text"], row["messages"][1]["content"]
        turns = [
            {"role": "user", "content": f"<image>{asked}"},
            {"role": "assistant", "content": said},
        ]
        named.append({"messages": turns, "images": [parts[0]["image"]]})
        packed.append({"messages": turns, "images": [{"bytes": content, "path": None}]})
        shown = [{"type": "image_url", "image_url": {"url": url}}, parts[1]]
        inline.append({"messages": [{"role": "user", "content": shown}, row["messages"][1]]})
    table = pytest.importorskip("pyarrow").Table.from_pylist(packed)
    parquet.write_table(table, tmp_path / "packed.parquet")
    (tmp_path / "named.json").write_text(json.dumps(named))
    (tmp_path / "inline.json").write_text(json.dumps(inline))
    for name in ("named.json", "inline.json", "packed.parquet"):
        recipe = small_recipe(calibration={"dataset": str(tmp_path / name)})
        windowed = windows_of(store, recipe, model)
        assert read_windows(store, windowed).illustrated.samples == 8
        found.append(windowed.files["samples.safetensors"].sha256)
        given = next(read_samples(store, windowed))
        assert given["pixel_values"].dtype == "float32"
        assert given["input_ids"].shape == given["mm_token_type_ids"].shape
    assert len(set(found)) == 1


def test_a_model_of_text_alone_is_refused_where_all_rows_have_images(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = images.write_text(tmp_path)
    model = fetch(store, str(tiny_llama))
    recipe = small_recipe(calibration={"dataset": str(path), "num_samples": 2})
    windowed = windows_of(store, recipe, model)
    assert windowed.facts["read"]["left_out"] == {"the model takes no images": 10}
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InvalidInputError, match="the model takes no images") as refused:
        windows_of(store, recipe, model)
    assert len(refused.value.problems) == 1


def test_models_are_judged_on_text(
    store: LocalStore, wrapper: Path, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = images.write_text(tmp_path)
    recipe = small_recipe(validation={"dataset": str(path), "num_samples": 2})
    texts = bring_texts(store, recipe)
    assert list(input_of(store, texts, "evaluation").files) == ["text.jsonl"]
    planned = plan(store, recipe, fetch(store, str(wrapper)), texts, 0)
    read = input_of(store, planned, "evaluation").facts["read"]
    assert read["left_out"] == {"holds images, and models are judged on text": 10}


def test_what_images_go_through_is_planned_for(
    store: LocalStore, wrapper: Path, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = small_recipe(calibration={"dataset": str(images.write_text(tmp_path))})
    checkpoint, adapter = open_model(FolderSource(wrapper))
    tower = sum(
        info.elements for name, info in checkpoint.tensors.items() if ".visual." in f".{name}"
    )
    without = model_sizes(recipe, checkpoint, adapter)
    sizes = model_sizes(recipe, checkpoint, adapter, images=True)
    assert sizes == replace(without, tower_elements=tower)
    assert tower > 0
    # A tower of a billion numbers is what takes most, and as much in every step that walks.
    large, hardware = replace(sizes, tower_elements=10**9), find_hardware("h100-80g")
    for memory in (calibrate_memory, quantize_memory):
        grown = memory(large, 512, hardware, 2).device - memory(without, 512, hardware, 2).device
        assert 1.9e9 < grown < 2.1e9
    model = fetch(store, str(wrapper))
    tight = replace(
        hardware,
        memory=estimate_run(recipe, checkpoint, adapter, hardware, 1, product_bytes=2)
        .needs["quantize"]
        .memory.device,
    )
    with pytest.raises(InvalidInputError, match="quantize on"):
        plan(store, recipe, model, bring_texts(store, recipe), 1, tight, 1, Limits())
