"""The packages of docs/extension_guide.md, installed, and their commands run as written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import ROOT, Block, blocks
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
PAGE = blocks(ROOT / "docs" / "extension_guide.md")
SECOND = next(
    number for number, block in enumerate(PAGE) if "\n## A type of numbers\n" in block.before
)
FIRST_PAGE, SECOND_PAGE = PAGE[:SECOND], PAGE[SECOND:]


def code(page: Sequence[Block], language: str) -> list[str]:
    return [block.text for block in page if block.language == language]


def install(root: Path, module: str, project: str, python: Sequence[str]) -> dict[str, str]:
    """An environment in which a package of the page is installed."""
    package = root / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(project)
    (package / f"{module}.py").write_text("\n".join(python))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(root / "site")]
    subprocess.run([*command, str(package)], check=True)
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    path = os.pathsep.join([str(ROOT), str(root / "site")])
    return os.environ | {"PATH": commands, "PYTHONPATH": path}


def run(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """Where the commands run: the recipe, and a model of a family that nobody knows."""
    root = tmp_path_factory.mktemp("guide")
    model = make_model(root / "toy-model", "llama", max_position_embeddings=1024)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "toy_llama"}))
    (root / "my-recipe.toml").write_text(code(FIRST_PAGE, "toml")[1])
    return root


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """One in which the package is installed."""
    project = code(FIRST_PAGE, "toml")[0]
    return install(folder, "my_parts", project, code(FIRST_PAGE, "python"))


@pytest.fixture(scope="module")
def done(folder: Path, environment: dict[str, str]) -> str:
    """What the commands printed."""
    (commands,) = code(FIRST_PAGE, "sh")
    result = run(commands, folder, environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_the_recipe_is_valid(done: str) -> None:
    assert "my-recipe.toml: valid" in done


def test_every_part_was_used(folder: Path, done: str) -> None:
    assert done
    config = json.loads((folder / "toy-w4" / "config.json").read_text())
    assert config["quantization_config"]["checkpoint_format"] == "gptq_v2"
    tensors = tensors_of(folder / "toy-w4")
    original = load_file(folder / "toy-model" / "model.safetensors")
    # Eight times the zero point 8, one in each half byte.
    zeros = tensors["model.layers.0.mlp.up_proj.qzeros"]
    assert torch.equal(
        zeros.long() & 0xFFFFFFFF, torch.full_like(zeros, 0x88888888, dtype=torch.int64)
    )
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(tensors[norm], original[norm])
    # Nine tenths of the largest weight is what the largest code stands for.
    weight = original["model.layers.3.self_attn.o_proj.weight"].float()
    scales = tensors_of(folder / "plain")["model.layers.3.self_attn.o_proj.weight_scale"]
    expected = weight.unflatten(1, (-1, 64)).abs().amax(-1) * 0.9 / 7.5
    torch.testing.assert_close(scales.float(), expected, rtol=2**-7, atol=0)


def test_messages_list_the_added_names(folder: Path, environment: dict[str, str]) -> None:
    command = "quantlib quantize --model toy-model --output never --method clopped"
    result = run(command, folder, environment)
    assert result.returncode == 2
    assert "known: awq, clipped, gptq, hqq, minmax" in result.stderr
    assert not (folder / "never").exists()


@dataclass(frozen=True)
class Six:
    """A layout of OCP Microscaling Formats 1.0, table 5: what a code of six bits stands for."""

    exponent: int
    mantissa: int
    bias: int

    def value(self, code: int) -> float:
        fraction = (code & (1 << self.mantissa) - 1) / (1 << self.mantissa)
        stated = code >> self.mantissa & (1 << self.exponent) - 1
        size = 2.0 ** (1 - self.bias) * fraction
        if stated:
            size = 2.0 ** (stated - self.bias) * (1 + fraction)
        return -size if code >> 5 else size

    def weight(self, packed: torch.Tensor, exponents: torch.Tensor) -> np.ndarray:
        """Four codes lie in three bytes, the first one lowest."""
        bits = np.unpackbits(packed.numpy(), axis=1, bitorder="little")
        codes = bits.reshape(len(bits), -1, 6) @ (1 << np.arange(6))
        values = np.array([self.value(code) for code in range(64)])[codes]
        return values * 2.0 ** (exponents.numpy().astype(int) - 127).repeat(32, axis=1)


E2M3, E3M2 = Six(2, 3, 1), Six(3, 2, 3)


@pytest.fixture(scope="module")
def six(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]
) -> tuple[Path, dict[str, str]]:
    """Where the second package's commands ran, and the environment with it."""
    root = tmp_path_factory.mktemp("fp6")
    make_model(root / "toy-model", "llama", max_position_embeddings=1024)
    (project,) = code(SECOND_PAGE, "toml")
    environment = install(root, "fp6", project, code(SECOND_PAGE, "python"))
    (commands,) = code(SECOND_PAGE, "sh")
    result = run(commands, root, environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return root, environment


def weights_of(folder: Path, layout: Six) -> dict[str, np.ndarray]:
    """What the packed tensors of a checkpoint stand for, by the names of linears."""
    tensors = tensors_of(folder)
    return {
        name.removesuffix("_scale"): layout.weight(tensors[name.removesuffix("_scale")], exponents)
        for name, exponents in tensors.items()
        if name.endswith(".weight_scale")
    }


def test_numbers_of_a_package_are_written_by_its_format(six: tuple[Path, dict[str, str]]) -> None:
    root, _ = six
    stated = {
        name: json.loads((root / name / "config.json").read_text())["quantization_config"]
        for name in ("nearest", "fp6", "wide", "rounded")
    }
    weights = {name: each["global_quant_config"]["weight"] for name, each in stated.items()}
    assert {each["quant_method"] for each in stated.values()} == {"quark"}
    assert weights["nearest"]["dtype"] == weights["rounded"]["dtype"] == "fp6_e2m3"
    assert weights["wide"]["dtype"] == "fp6_e3m2"
    inputs = {name: each["global_quant_config"]["input_tensors"] for name, each in stated.items()}
    assert inputs["nearest"] is None
    assert inputs["rounded"] == weights["rounded"] | {"is_dynamic": True}
    report = json.loads((root / "rounded" / "quantization_report.json").read_text())
    assert report["method"]["activations"] == "mxfp6-e2m3"
    assert "MXFP6_E2M3" in (root / "rounded" / "quantization_report.html").read_text()


def test_each_weight_is_the_nearest_of_its_group(six: tuple[Path, dict[str, str]]) -> None:
    root, _ = six
    original = load_file(root / "toy-model" / "model.safetensors")
    values = np.array([E2M3.value(code) for code in range(64)])
    found = weights_of(root / "nearest", E2M3)
    assert len(found) == 7 * 4
    for name, got in found.items():
        groups = original[name].double().numpy().reshape(-1, 32)
        largest = np.abs(groups).max(1, keepdims=True)
        # The least power of two over which the largest weight is rounded to 7.5 at most.
        scales = 2.0 ** (np.floor(np.log2(largest / 7.75)) + 1)
        near = values[np.abs(groups[..., None] / scales[..., None] - values).argmin(-1)] * scales
        errors, best = np.abs(got.reshape(-1, 32) - groups), np.abs(near - groups)
        np.testing.assert_allclose(errors, best, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "layout"), [("fp6", E2M3), ("wide", E3M2), ("nearest", E2M3)])
def test_they_are_read_back_bit_for_bit(
    six: tuple[Path, dict[str, str]], name: str, layout: Six
) -> None:
    root, environment = six
    script = (
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "from quantlib.checkpoint.checkpoint import Checkpoint\n"
        "from quantlib.checkpoint.source import FolderSource\n"
        "from quantlib.formats.dequantize import dequantized_state\n"
        f"state = dict(dequantized_state(Checkpoint.open(FolderSource(Path('{name}')))))\n"
        "save_file(state, 'state.safetensors')\n"
    )
    (root / "read.py").write_text(script)
    result = run("python read.py", root, environment)
    assert result.returncode == 0, result.stderr
    state = load_file(root / "state.safetensors")
    expected = weights_of(root / name, layout)
    assert len(expected) == 7 * 4
    for weight, numbers in expected.items():
        assert torch.equal(state[weight], torch.from_numpy(numbers).to(state[weight].dtype))
    original = load_file(root / "toy-model" / "model.safetensors")
    assert state.keys() == original.keys()


def test_gptq_makes_up_for_errors_on_such_a_grid(six: tuple[Path, dict[str, str]]) -> None:
    root, _ = six
    report = {
        name: json.loads((root / name / "quantization_report.json").read_text())
        for name in ("nearest", "fp6")
    }
    assert report["fp6"]["method"]["quantizer"] == "gptq"
    nearest, fp6 = (weights_of(root / name, E2M3) for name in ("nearest", "fp6"))
    original = load_file(root / "toy-model" / "model.safetensors")
    for name, got in fp6.items():
        assert (got != nearest[name]).any()
        errors = np.linalg.norm(got - original[name].double().numpy())
        assert errors < 0.1 * np.linalg.norm(original[name].double().numpy())


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_vllm_finds_its_scheme_for_them(six: tuple[Path, dict[str, str]]) -> None:
    root, environment = six
    script = """
import json, sys
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.quark.quark import QuarkConfig
for name in ("fp6", "wide", "rounded"):
    config = json.load(open(f"{name}/config.json"))["quantization_config"]
    weights, inputs, scheme = QuarkConfig.from_config(config).get_scheme_cls(
        LinearBase, "model.layers.0.self_attn.qkv_proj"
    )
    made = scheme(weights, inputs)
    packed = made.get_packed_dim(64, made.weight_dtype)
    print(name, scheme.__name__, made.weight_dtype, made.input_dtype, packed)
"""
    (root / "scheme.py").write_text(script)
    result = run("python scheme.py", root, environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == [
        "fp6 QuarkOCP_MX mxfp6_e2m3 None 48",
        "wide QuarkOCP_MX mxfp6_e3m2 None 48",
        "rounded QuarkOCP_MX mxfp6_e2m3 mxfp6_e2m3 48",
    ]
    packed = tensors_of(root / "fp6")["model.layers.0.self_attn.q_proj.weight"]
    assert packed.shape == (64, 48)


def test_what_cannot_be_held_is_said_with_the_names_of_both(
    six: tuple[Path, dict[str, str]],
) -> None:
    root, environment = six
    command = "quantlib quantize --model toy-model --output never --method minmax"
    result = run(f"{command} --scheme MXFP6_E2M3 --format gptq", root, environment)
    assert result.returncode == 2
    assert "gptq cannot hold this" in result.stderr
    result = run(f"{command} --scheme MXFP6_E2M4", root, environment)
    assert result.returncode == 2
    assert "did you mean MXFP6_E2M3?" in result.stderr
    assert "Traceback" not in result.stderr
