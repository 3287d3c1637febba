"""Model families: where their blocks and linears are, and how a block is computed.

Importing this package registers the families that ship; it does not import torch.
"""

from quantlib.models.base import BaseModelAdapter, LinearGroup, Producer
from quantlib.models.gemma import Gemma3Adapter, GemmaAdapter
from quantlib.models.granite import GraniteAdapter
from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.llama import LlamaAdapter
from quantlib.models.mixtral import MixtralAdapter
from quantlib.models.mixture import MixtureAdapter
from quantlib.models.olmo import OlmoAdapter
from quantlib.models.opening import open_model
from quantlib.models.phi import PhiAdapter
from quantlib.models.qwen import Qwen3Adapter, QwenAdapter
from quantlib.models.qwen3_moe import Qwen3MoeAdapter
from quantlib.models.registry import ModelRegistry, model_registry

__all__ = [
    "BaseHuggingFaceAdapter",
    "BaseModelAdapter",
    "Gemma3Adapter",
    "GemmaAdapter",
    "GraniteAdapter",
    "LinearGroup",
    "LlamaAdapter",
    "MixtralAdapter",
    "MixtureAdapter",
    "ModelRegistry",
    "OlmoAdapter",
    "PhiAdapter",
    "Producer",
    "Qwen3Adapter",
    "Qwen3MoeAdapter",
    "QwenAdapter",
    "model_registry",
    "open_model",
]
