"""Model families: where their blocks and linears are, and how a block is computed.

Importing this package registers the families that ship; it does not import torch.
"""

from quantlib.models.base import BaseModelAdapter, LinearGroup, Producer
from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.llama import LlamaAdapter
from quantlib.models.qwen import QwenAdapter
from quantlib.models.registry import ModelRegistry, model_registry

__all__ = [
    "BaseHuggingFaceAdapter",
    "BaseModelAdapter",
    "LinearGroup",
    "LlamaAdapter",
    "ModelRegistry",
    "Producer",
    "QwenAdapter",
    "model_registry",
]
