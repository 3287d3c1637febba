"""A recipe that takes the pipeline in a moment, judged by transformers, whatever comes out."""

from typing import Any

QUICK: dict[str, Any] = {
    "quantization": {"weights": {"bits": 4, "group_size": 32}},
    "calibration": {"num_samples": 8, "sequence_length": 64},
    "num_ranges": 2,
    "validation": {
        "engine": "transformers",
        "num_samples": 4,
        "sequence_length": 64,
        "prompts": ["The engine"],
        "max_new_tokens": 4,
        "thresholds": {
            "max_perplexity_increase": 10,
            "max_kl_mean": 20,
            "min_top1_agreement": 0.001,
        },
    },
}
