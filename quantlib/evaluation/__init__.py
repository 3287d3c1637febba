"""How much a quantized model differs from its original, and whether that is too much.

Each model runs in a process of its own (:mod:`quantlib.evaluation.worker`), by vLLM or by
transformers behind one small interface (:mod:`quantlib.evaluation.engine`). The original's final
hidden states are kept; the quantized model's process turns them and its own into logits by the same
head and compares the two over the whole vocabulary (:mod:`quantlib.evaluation.metrics`). The gate
(:mod:`quantlib.evaluation.gate`) compares the figures with the recipe's thresholds.
"""
