"""Models: what they are made of, and transformers' own modules walked block by block.

Importing this package registers the families that ship; it does not import torch.
"""

from quantlib.models.adapter import BaseModelAdapter
from quantlib.models.deepseek import DeepseekV4Adapter
from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.layout import Layout, Producer, SharedInput
from quantlib.models.llama import LlamaAdapter
from quantlib.models.opening import open_checkpoint, open_model
from quantlib.models.qwen import QwenAdapter
from quantlib.models.registry import ModelRegistry, model_registry

__all__ = [
    "BaseHuggingFaceAdapter",
    "BaseModelAdapter",
    "DeepseekV4Adapter",
    "Layout",
    "LlamaAdapter",
    "ModelRegistry",
    "Producer",
    "QwenAdapter",
    "SharedInput",
    "model_registry",
    "open_checkpoint",
    "open_model",
]
