"""What vLLM makes of a checkpoint's names: part of scripts/vllm_table.py.

vLLM builds the model on the meta device with a quantization config that writes down what it is
asked for, and gets a tensor without content for every name on disk while every parameter's loader
writes down what it is given.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import torch
from torch import Tensor, nn

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import TORCH_DTYPES

EXPERT_NAMES = (
    (("gate_proj", "up_proj"), ("down_proj",)),
    (("gate_up_proj",), ("down_proj",)),
    (("up_proj",), ("down_proj",)),
    (("w1", "w3"), ("w2",)),
)
"""How the linears of an expert may be called: what is multiplied first, and second."""

_STACKED = re.compile(
    r"(.+)\.(gate_up_proj|up_proj|down_proj|input_linear\.weight|output_linear\.weight)"
)
_SHARDS = ("expert_id", "loaded_shard_id", "shard_id")


@dataclass
class Seen:
    """What vLLM did.

    Attributes:
        model_class: The class that vLLM has for the architecture.
        blocks: How many blocks the model has.
        packed: What vLLM says of itself: the last part of a fused linear's name, and of its
            parts' names.
        asked: Kind of module, ``linear``, ``experts`` or ``other``, by the prefix that a
            quantization config is asked about.
        expert_linears: How vLLM calls an expert's linears, by the prefix of experts.
        landed: By name on disk: the prefix that was asked for the module that a tensor is loaded
            into, or nothing; the parameter; the shard of it; and the module's class.
        asking: Names on disk of what is loaded into modules that were asked for, by whatever name.
        matrices: Names on disk of weights with two dimensions and more.
        lost: Names on disk that are loaded into nothing.
        stacked: Tensors that hold a linear of all experts, by the module that they are of.
        split_names: How vLLM calls an expert's linears on disk where each has its own tensors.
        ignores: Whether a prefix is left exact for a list of names to ignore.
    """

    model_class: str
    blocks: int
    packed: dict[str, list[str]]
    asked: dict[str, str]
    expert_linears: dict[str, tuple[str, ...]]
    landed: dict[str, tuple[str, str, str, str]]
    matrices: set[str]
    lost: list[str]
    asking: set[str]
    ignores: Callable[[str, list[str]], bool]
    stacked: dict[str, list[str]] = field(default_factory=dict)
    split_names: tuple[tuple[str, ...], tuple[str, ...]] | None = None


def probe(folder: Path, images: bool = True) -> Seen:
    """Lets vLLM build and load the model of a folder.

    Args:
        folder: Holds the checkpoint.
        images: Whether it is built with what reads images, if it has that.

    Raises:
        Exception: Whatever vLLM raises when it refuses the model.
    """
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from quantlib.evaluation.vllm_engine import register_without_subprocess

    checkpoint = Checkpoint.open(FolderSource(folder))
    register_without_subprocess(dict(checkpoint.config))
    config = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        load_format="dummy",
        distributed_executor_backend="uni",
        max_model_len=128,
        limit_mm_per_prompt={} if images else {"image": 0, "video": 0, "audio": 0},
    ).create_engine_config()
    recorder = config.quant_config = _recorder()
    with ExitStack() as stack:
        stack.enter_context(set_current_vllm_config(config))
        rendezvous = f"file://{tempfile.mkdtemp(dir=folder)}/rendezvous"
        init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        with set_default_torch_dtype(torch.bfloat16), _in_place_of_gpus():
            model = initialize_model(config)
        tensors = {
            name: torch.zeros(info.shape, dtype=TORCH_DTYPES[info.dtype])
            for name, info in checkpoint.tensors.items()
        }
        blocks = config.model_config.hf_text_config.num_hidden_layers
        seen = _loaded(model, blocks, recorder, tensors)
        seen.stacked = _stacked_experts(tensors)
        if seen.stacked:
            seen.split_names = _names_when_split(model, seen.stacked, tensors)
    return seen


@contextmanager
def _in_place_of_gpus() -> Iterator[None]:
    """Lets families be built whose attention or experts vLLM computes on GPUs only."""
    from vllm.model_executor.layers.fused_moe import config as moe
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as experts
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
    from vllm.platforms.cpu import CpuPlatform

    dense = CpuPlatform.get_attn_backend_cls

    def attention(_: type, backend: Any, attn_selector_config: Any, **options: Any) -> str:
        return dense(backend, attn_selector_config._replace(use_sparse=False), **options)

    chosen = (UnquantizedMoeBackend.CPU, None)
    with (
        patch.object(experts, "select_unquantized_moe_backend", lambda **_: chosen),
        patch.object(CpuPlatform, "get_attn_backend_cls", classmethod(attention)),
        patch.object(moe, "current_platform", Mock(wraps=moe.current_platform)) as platform,
    ):
        platform.is_cuda_alike = lambda: True
        yield


def _recorder() -> Any:
    """A quantization config that quantizes nothing and writes down what it is asked for."""
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    class Recorder(QuantizationConfig):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[nn.Module, str, str]] = []
            self.mappers: list[Any] = []

        def get_name(self) -> str:
            return "compressed-tensors"

        def get_supported_act_dtypes(self) -> list[torch.dtype]:
            return [torch.bfloat16]

        @classmethod
        def get_min_capability(cls) -> int:
            return 0

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []

        @classmethod
        def from_config(cls, _: dict[str, Any]) -> Recorder:
            return cls()

        def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
            self.mappers.append(hf_to_vllm_mapper)

        def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
            kinds = ((LinearBase, "linear"), (RoutedExperts, "experts"))
            kind = next((kind for base, kind in kinds if isinstance(layer, base)), "other")
            self.asked.append((layer, prefix, kind))
            return UnquantizedLinearMethod() if kind == "linear" else None

    return Recorder()


def _loaded(model: nn.Module, blocks: int, recorder: Any, tensors: Mapping[str, Tensor]) -> Seen:
    """Gives a model its tensors, and says where they went."""
    prefixes = {id(layer): prefix for layer, prefix, _ in recorder.asked}
    modules = dict(model.named_modules())
    landed, lost, asking = {}, [], set()
    for name, places in _land(model, tensors).items():
        if not places:
            lost.append(name)
            continue
        parameter, shard = places[0]
        module = modules[parameter.rpartition(".")[0]]
        prefix = prefixes.get(id(module), "")
        landed[name] = (prefix, parameter, shard, type(module).__name__)
        if id(module) in prefixes:
            asking.add(name)
    return Seen(
        model_class=type(model).__name__,
        blocks=blocks,
        packed=dict(recorder.packed_modules_mapping),
        asked={prefix: kind for _, prefix, kind in recorder.asked},
        expert_linears={
            prefix: (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
            for layer, prefix, kind in recorder.asked
            if kind == "experts"
        },
        landed=landed,
        matrices={name for name, each in tensors.items() if _is_matrix(name, each)},
        lost=lost,
        asking=asking,
        ignores=_ignoring(recorder),
    )


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.dim() > 1


def _land(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[tuple[str, str]]]:
    """The parameters and shards that tensors are loaded into, by their names on disk."""
    given = ""
    places: dict[str, list[tuple[str, str]]] = {name: [] for name in tensors}

    def recording(parameter: str) -> Callable[..., bool]:
        def record(*arguments: Any, **options: Any) -> bool:
            shard = [value for value in arguments[2:] if isinstance(value, int | str)]
            shard += [options[name] for name in _SHARDS if options.get(name) is not None]
            places[given].append((parameter, "/".join(map(str, shard))))
            return True

        return record

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # Parameters of vLLM's own have a property of this name.
        own = isinstance(getattr(type(tensor), "weight_loader", None), property)
        setattr(tensor, "_weight_loader" if own else "weight_loader", recording(name))

    def give() -> Iterator[tuple[str, Tensor]]:
        nonlocal given
        for name, tensor in tensors.items():
            given = name
            yield name, tensor

    try:
        model.load_weights(give())
    except Exception as error:
        error.add_note(f"when it gets {given}, {list(tensors[given].shape)}")
        raise
    return places


def _ignoring(recorder: Any) -> Callable[[str, list[str]], bool]:
    """Whether vLLM leaves a prefix exact for the ``ignore`` of compressed-tensors."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsConfig,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import (
        should_ignore_layer,
    )

    def ignores(prefix: str, names: list[str]) -> bool:
        config = CompressedTensorsConfig.from_config(
            {"format": "int-quantized", "ignore": list(names), "config_groups": {}}
        )
        for mapper in recorder.mappers:
            config.apply_vllm_mapper(mapper)
        try:
            return should_ignore_layer(prefix, config.ignore, recorder.packed_modules_mapping)
        except ValueError:  # some parts of a fused linear only
            return False

    return ignores


def _stacked_experts(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of tensors that hold a linear of every expert, by the module that they belong to."""
    found: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 3 and (match := _STACKED.fullmatch(name)):
            found.setdefault(match[1], []).append(name)
    return found


def _names_when_split(
    model: nn.Module, stacked: dict[str, list[str]], tensors: Mapping[str, Tensor]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """What vLLM takes an expert's linears for where each has tensors of its own.

    Returns:
        The names of what is multiplied first and of what second; none where it takes none.
    """
    names = [name for of_module in stacked.values() for name in of_module]
    others = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in names and name.removesuffix("_bias") not in names
    }
    count, rows, columns = tensors[names[0]].shape
    size = min(rows, columns)
    for first, second in EXPERT_NAMES:
        split = {
            f"{experts_module(module)}.{expert}.{linear}.weight": torch.zeros(size, size)
            for module in stacked
            for expert in range(count)
            for linear in (*first, *second)
        }
        try:
            places = _land(model, others | split)
        except Exception:  # another style is tried
            continue
        where = {places[name][0][0] for name in split if places[name]}
        if all(places[name] for name in split) and len(where) == 2 * len(stacked):
            return first, second
    return None


def experts_module(module: str) -> str:
    """Where the experts of a module lie that holds their stacked tensors."""
    return module if module.endswith("experts") else f"{module}.experts"
