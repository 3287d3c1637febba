"""Formats against independent readers: compressed-tensors' decompression, and unpacking by hand."""

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

from quantlib.formats import CheckpointScheme, format_registry
from quantlib.formats.base import SchemeTargets
from quantlib.formats.packing import pack_e2m1, pack_int32, unpack_e2m1, unpack_int32
from quantlib.numbers.quantized import QuantizedLinear
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import InputStatistics, MinMaxQuantizer
from quantlib.schemes import SCHEMES as SCHEMES_BY_NAME
from quantlib.schemes import LinearScheme, WeightScheme

SCHEMES = [
    WeightScheme(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (2, 4, 8)
    for group_size in (-1, 32, 64, 128)
    for symmetric in (True, False)
    if symmetric or bits > 2
]


def quantized(weights: WeightScheme) -> QuantizedLinear:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    quantizer = MinMaxQuantizer(QuantizationSection(method="minmax", weights=weights))
    return quantizer.quantize({"x": weight}, InputStatistics(), torch.bfloat16).linears["x"]


def scheme_of(name: str, weights: WeightScheme, activations: str = "none") -> CheckpointScheme:
    return CheckpointScheme(
        format=name,
        schemes=(SchemeTargets(LinearScheme(weights=weights, activations=activations)),),
        exact=("lm_head", "model.layers.1.mlp.down_proj"),
        exact_fused=("model.layers.1.mlp.gate_up_proj",),
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 31, 32, 40])
def test_packing_round_trips(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, count), dtype=torch.uint8)
    words = pack_int32(codes, bits)
    assert words.shape == (3, -(-count * bits // 32))
    assert torch.equal(unpack_int32(words, bits, count), codes)


@pytest.mark.parametrize("weights", SCHEMES, ids=str)
def test_compressed_tensors_reads_our_weights(weights: WeightScheme) -> None:
    linear = quantized(weights)
    ours = format_registry.get_format("compressed-tensors")
    config = QuantizationConfig.model_validate(
        ours.quantization_config(scheme_of("compressed-tensors", weights))
    )
    group = config.config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    restored = compressor.decompress(ours.tensors(linear, "none"), group)["weight"]
    torch.testing.assert_close(
        restored.float(), linear.dequantize(torch.bfloat16).float(), rtol=2**-7, atol=0
    )


def test_compressed_tensors_reads_our_int8_weights() -> None:
    weights = WeightScheme(bits=8, group_size=-1)
    linear = quantized(weights)
    ours = format_registry.get_format("compressed-tensors")
    config = QuantizationConfig.model_validate(
        ours.quantization_config(scheme_of("compressed-tensors", weights, "int8"))
    )
    group = config.config_groups["group_0"]
    assert group.input_activations.dynamic
    assert group.input_activations.strategy == "token"
    tensors = ours.tensors(linear, "int8")
    assert tensors["weight"].dtype == torch.int8
    restored = BaseCompressor.get_value_from_registry("int-quantized").decompress(tensors, group)
    torch.testing.assert_close(restored["weight"].float(), linear.dequantize(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("weights", [s for s in SCHEMES if s.symmetric], ids=str)
def test_gptq_layout_unpacked_by_hand(weights: WeightScheme) -> None:
    linear = quantized(weights)
    tensors = format_registry.get_format("gptq").tensors(linear, "none")
    bits, per_word = weights.bits, 32 // weights.bits
    words = tensors["qweight"].numpy().astype("uint32")
    assert words.shape == (256 // per_word, 64)
    mask = (1 << bits) - 1
    zero = int(tensors["qzeros"].numpy().astype("uint32")[0, 0] & mask) + 1
    assert zero == 1 << (bits - 1)
    expected = linear.dequantize()
    for row, column in [(0, 0), (3, 17), (63, 255), (20, 128)]:
        word = int(words[column // per_word, row])
        code = (word >> bits * (column % per_word)) & mask
        scale = float(tensors["scales"][int(tensors["g_idx"][column]), row])
        assert (code - zero) * scale == pytest.approx(float(expected[row, column]))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_layout_unpacked_by_hand(group_size: int, symmetric: bool) -> None:
    linear = quantized(WeightScheme(bits=4, group_size=group_size, symmetric=symmetric))
    tensors = format_registry.get_format("awq").tensors(linear, "none")
    words = tensors["qweight"].numpy().astype("uint32")
    zeros = tensors["qzeros"].numpy().astype("uint32")
    assert words.shape == (256, 64 // 8)
    assert zeros.shape == (256 // group_size, 64 // 8)
    expected = linear.dequantize()
    # Where in its word the code of each of eight output channels stands.
    nibbles = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}
    for row, column in [(0, 0), (1, 5), (3, 17), (20, 128), (46, 77), (63, 255)]:
        shift, group = 4 * nibbles[row % 8], column // group_size
        code = (int(words[column, row // 8]) >> shift) & 15
        zero = (int(zeros[group, row // 8]) >> shift) & 15
        scale = float(tensors["scales"][group, row])
        assert (code - zero) * scale == pytest.approx(float(expected[row, column]))
        assert zero == 8 or not symmetric


def test_awq_config_is_what_vllm_reads() -> None:
    auto_awq = pytest.importorskip("vllm.model_executor.layers.quantization.auto_awq")
    weights = WeightScheme(bits=4, group_size=64)
    ours = format_registry.get_format("awq").quantization_config(scheme_of("awq", weights))
    config = auto_awq.AutoAWQConfig.from_config(ours)
    assert (config.weight_bits, config.group_size, config.zero_point) == (4, 64, True)
    exact = ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_up_proj"]
    assert config.modules_to_not_convert == exact


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        (name, weights)
        for name in ("awq", "gptq", "compressed-tensors")
        for weights in SCHEMES
        if not format_registry.get_format(name).scheme_problem(weights, "none")
    ],
    ids=str,
)
def test_parse_is_the_inverse(name: str, weights: WeightScheme) -> None:
    ours = format_registry.get_format(name)
    linear = quantized(weights)
    config = ours.quantization_config(scheme_of(name, weights))
    read = ours.read_schemes(config)
    assert read("model.layers.0.mlp.down_proj") == LinearScheme(weights=weights)
    assert read("model.layers.1.mlp.down_proj") is None
    back = ours.parse(ours.tensors(linear, "none"), weights)
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.dequantize(), linear.dequantize())


FLOATS = [name for name, scheme in SCHEMES_BY_NAME.items() if scheme["weights"]["type"] == "float"]
PRESETS = [*SCHEMES_BY_NAME.keys() - {"W2A16", "FP8_STATIC"}]  # which the package has no preset for


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_schemes_are_the_presets_of_compressed_tensors(name: str) -> None:
    """Our config is the package's own preset, and its decompression gives what is meant."""
    weights = WeightScheme(**{"group_size": 128} | SCHEMES_BY_NAME[name]["weights"])
    activations = SCHEMES_BY_NAME[name]["activations"]
    linear = quantized(weights)
    ours = format_registry.get_format("compressed-tensors")
    given = ours.quantization_config(scheme_of("compressed-tensors", weights, activations))
    config = QuantizationConfig.model_validate(given)
    group = config.config_groups["group_0"]
    preset = preset_name_to_scheme(name, ["Linear"])
    kept = {"observer", "observer_kwargs", "actorder"}
    if name == "W8A16":  # in groups of 128 with us, which channels are the same numbers of
        kept |= {"strategy", "group_size"}
    assert group.weights.model_dump(exclude=kept) == preset.weights.model_dump(exclude=kept)
    found, expected = (
        each.input_activations and each.input_activations.model_dump(exclude=kept)
        for each in (group, preset)
    )
    assert found == expected
    tensors = ours.tensors(linear, activations)
    restored = BaseCompressor.get_value_from_registry(config.format).decompress(tensors, group)
    torch.testing.assert_close(
        restored["weight"].float(), linear.dequantize(torch.bfloat16).float(), rtol=2**-7, atol=0
    )
    read = ours.read_schemes(given)("model.layers.0.mlp.down_proj")
    assert read == LinearScheme(weights=weights, activations=activations)
    back = ours.parse(tensors, weights)
    assert torch.equal(back.dequantize(), linear.dequantize())


@pytest.mark.parametrize("name", FLOATS)
def test_floating_point_weights_are_near(name: str) -> None:
    weights = WeightScheme(**SCHEMES_BY_NAME[name]["weights"])
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    error = (quantized(weights).dequantize() - weight).norm() / weight.norm()
    assert error < (0.03 if weights.bits == 8 else 0.13)


def test_fp4_packs_as_it_is_read() -> None:
    pairs = torch.arange(256, dtype=torch.uint8).view(2, -1)
    assert torch.equal(pack_e2m1(unpack_e2m1(pairs)), pairs)


def test_fp8_static_is_fp8_dynamic_with_a_stored_step() -> None:
    """Read by the package, and what inputs are rounded by lies where vLLM looks for it."""
    weights = WeightScheme(type="float", bits=8, group_size=-1)
    linear = replace(quantized(weights), input_scale=torch.tensor([0.25]))
    ours = format_registry.get_format("compressed-tensors")
    given = ours.quantization_config(scheme_of("compressed-tensors", weights, "fp8-static"))
    inputs = QuantizationConfig.model_validate(given).config_groups["group_0"].input_activations
    assert (inputs.num_bits, inputs.type, inputs.strategy) == (8, "float", "tensor")
    assert inputs.dynamic is False
    assert ours.tensors(linear, "fp8-static")["input_scale"].tolist() == [0.25]
    assert ours.read_schemes(given)("x") == LinearScheme(weights=weights, activations="fp8-static")


@pytest.mark.parametrize("name", ["NVFP4", "MXFP4"])
def test_activations_are_known_without_what_symmetric_ones_need_not_say(name: str) -> None:
    """As llm-compressor writes them."""
    weights = WeightScheme(**SCHEMES_BY_NAME[name]["weights"])
    activations = SCHEMES_BY_NAME[name]["activations"]
    ours = format_registry.get_format("compressed-tensors")
    given = ours.quantization_config(scheme_of("compressed-tensors", weights, activations))
    given["config_groups"]["group_0"]["input_activations"] |= {"zp_dtype": None, "observer": "x"}
    assert ours.read_schemes(given)("x").activations == activations
