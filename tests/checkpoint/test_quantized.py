"""Where a config says that weights are quantized."""

from quantlib.checkpoint.quantized import stated_quantization, without_quantization

GPTQ = {"quant_method": "gptq", "bits": 4}


def test_a_wrapper_may_say_it_of_its_language_model() -> None:
    config = {"model_type": "kimi_k25", "text_config": {"hidden_size": 8}}
    stated = config | {"text_config": {"hidden_size": 8, "quantization_config": GPTQ}}
    assert stated_quantization(config) is None
    assert stated_quantization(stated) == ("text_config.quantization_config", GPTQ)
    assert without_quantization(stated) == config
    assert stated_quantization(stated | {"quantization_config": {"quant_method": "fp8"}}) == (
        "quantization_config",
        {"quant_method": "fp8"},
    )
