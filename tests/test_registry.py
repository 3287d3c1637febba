import pytest

from quantlib.errors import UnknownNameError
from quantlib.models import BaseHuggingFaceAdapter, LlamaAdapter, QwenAdapter, model_registry
from quantlib.outlier_suppression import SmoothQuantSuppressor, outlier_suppression_registry
from quantlib.quantizers import AWQQuantizer, GPTQQuantizer, MinMaxQuantizer, quantizer_registry
from quantlib.registry import Registry


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries of a test add no code to what later tests are made by."""
    monkeypatch.setattr(Registry, "_all", list(Registry._all))


def test_look_up_folds_case_and_separators() -> None:
    registry: Registry[type] = Registry("thing", "quantlib.test")

    @registry.register("smooth_quant", "sq")
    class Thing:
        pass

    assert registry.get("Smooth-Quant") is registry.get("SQ") is Thing
    assert registry.names() == ("smooth_quant", "sq")
    assert "sq" in registry
    assert "other" not in registry


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown quantization method 'gtpq'; known: awq, gptq, hqq, minmax"
    ):
        quantizer_registry.get_quantizer("gtpq")


def test_a_name_belongs_to_one_class() -> None:
    registry: Registry[type] = Registry("thing", "quantlib.test")
    registry.register("a")(int)
    registry.register("a")(int)
    with pytest.raises(ValueError, match="registered already"):
        registry.register("A")(str)


def test_the_parts_that_ship() -> None:
    assert quantizer_registry.get_quantizer("gptq") is GPTQQuantizer
    assert quantizer_registry.get_quantizer("awq") is AWQQuantizer
    assert quantizer_registry.get_quantizer("minmax") is MinMaxQuantizer
    assert (
        model_registry.get_adapter("llama") is model_registry.get_adapter("mistral") is LlamaAdapter
    )
    assert model_registry.get_adapter("qwen2") is model_registry.get_adapter("qwen3") is QwenAdapter
    # A family without an adapter of its own has that of all.
    assert model_registry.get_adapter("gemma3_text") is BaseHuggingFaceAdapter
    assert outlier_suppression_registry.get_suppressor("smooth-quant") is SmoothQuantSuppressor
