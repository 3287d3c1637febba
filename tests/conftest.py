"""Tiny random models of every family, and the steps run on them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Seconds for each of the many tiny models; tests of the dry load switch it on.
os.environ.setdefault("QUANTLIB_DRY_LOAD", "never")

import pytest
import s3
from recipes import settled_recipe

from quantlib.checks.recipe import parse_recipe
from quantlib.checks.scheme import open_sizes
from quantlib.evaluation.process import Workers
from quantlib.recipe import Recipe
from quantlib.store import LocalStore, Receipt, Store

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

SHIPPED_TEXTS = Path(__file__).parent.parent / "quantlib/text/data"

MakeModel = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: one that starts last keeps one process busy, and no other."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE of 512 tokens, trained on prose that ships."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    held_out = SHIPPED_TEXTS / "sqlite.jsonl"
    texts = [json.loads(line)["text"] for line in held_out.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def make_model(tiny_tokenizer: Any) -> MakeModel:
    """Writes a tiny random model of a family to a folder."""

    def make(
        folder: Path, model_type: str = "llama", *, dtype: str = "bfloat16", **config: Any
    ) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

        shards = config.pop("max_shard_size", "1GB")
        stacked = config.pop("stacked_experts", False)
        torch.manual_seed(0)
        settings = AutoConfig.for_model(model_type, **TINY | config)
        model = AutoModelForCausalLM.from_config(settings)
        for name, parameter in model.named_parameters():
            # Biases and norms start as zeros and ones, which would hide mistakes with them.
            if name.endswith(("bias", "norm.weight")):
                torch.nn.init.normal_(parameter, float("norm" in name), 0.2)
        model.to(getattr(torch, dtype)).save_pretrained(
            folder, max_shard_size=shards, save_original_format=not stacked
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer, bos_token="<s>", eos_token="</s>"
        ).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tied embeddings. Not to be changed."""
    return make_model(tmp_path_factory.mktemp("models") / "llama", tie_word_embeddings=True)


SMALL = {
    "quantization": {"weights": {"bits": 4, "group_size": 32}},
    "calibration": {"num_samples": 8, "sequence_length": 64},
    "validation": {"num_samples": 4, "sequence_length": 64, "answer_tokens": 8},
}


def _small_recipe(**changes: Any) -> Recipe:
    """A recipe that runs in a moment; one that is only asked for where a size is left open."""
    data = {name: dict(section) for name, section in SMALL.items()}
    for name, value in changes.items():
        data[name] = data.get(name, {}) | value if isinstance(value, dict) else value
    asked = parse_recipe(data)
    return asked if open_sizes(asked.quantization) else settled_recipe(data)  # type: ignore[return-value]


@dataclass(frozen=True)
class Made:
    """The receipts of a run."""

    store: Store
    recipe: Recipe
    model: Receipt
    plan: Receipt
    calibration: Receipt
    smoothing: Receipt
    quantized: list[Receipt]
    checkpoint: Receipt

    def export(self, folder: Path) -> Path:
        """Writes the checkpoint to a folder, which is given back."""
        for name in self.checkpoint.facts["checkpoint_files"]:
            self.store.export_file(self.checkpoint.path(name), folder / name)
        return folder


def _run_steps(store: Store, recipe: Recipe, source: Path, device: str = "cpu") -> Made:
    """Every step up to merge."""
    from quantlib.steps.calibrate import calibrate
    from quantlib.steps.fetch import fetch
    from quantlib.steps.merge import merge
    from quantlib.steps.plan import plan
    from quantlib.steps.quantize import quantize
    from quantlib.steps.smooth import smooth
    from quantlib.steps.texts import bring_texts

    model, texts = fetch(store, str(source)), bring_texts(store, recipe)
    planned = plan(store, recipe, model, texts, 0)
    calibration = calibrate(store, recipe, model, planned, device)
    smoothing = smooth(store, recipe, model, calibration)
    quantized = [
        quantize(store, recipe, block_range, model, calibration, smoothing, device)
        for block_range in planned.facts["ranges"]
    ]
    checkpoint = merge(store, recipe, model, quantized)
    return Made(store, recipe, model, planned, calibration, smoothing, quantized, checkpoint)


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., Recipe]:
    """Makes recipes that run in a moment, with changes to some sections."""
    return _small_recipe


@pytest.fixture(scope="session")
def run_steps() -> Callable[..., Made]:
    """Runs every step up to merge."""
    return _run_steps


@pytest.fixture(scope="module")
def shared_engines() -> Iterator[None]:
    """Steps that a file's tests run in this process have models judged by the same workers.

    Each engine is imported once for the file, which takes a worker longer than a tiny model does.
    """
    opened: dict[str, Workers] = {}
    with ExitStack() as workers, pytest.MonkeyPatch.context() as patch:

        def share(engine: str) -> AbstractContextManager[Workers]:
            if engine not in opened:
                opened[engine] = workers.enter_context(Workers(engine))
            return nullcontext(opened[engine])

        patch.setattr("quantlib.steps.validate.Workers", share)
        yield


@pytest.fixture
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are multiplied in float32, whatever instructions this CPU has."""
    import torch

    monkeypatch.setattr(
        "quantlib.runtime.devices.cpu_multiplies", lambda dtype: dtype is torch.float32
    )


@pytest.fixture
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models in bfloat16 are multiplied in bfloat16, emulated where the CPU cannot."""
    monkeypatch.setattr("quantlib.runtime.devices.cpu_multiplies", lambda _: True)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store."""
    return LocalStore(tmp_path / "store")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts on a folder, which is made: ``mount(folder, "-t", "tmpfs", "tmpfs")``."""
    mounted: list[Path] = []

    def mount_on(folder: Path, *arguments: str | Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", *map(str, arguments), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting needs root and its capabilities: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    yield mount_on
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real S3 server."""
    with s3.s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@contextmanager
def _proxied_s3(port: int, home: Path) -> Iterator[s3.Proxy]:
    with s3.proxy_before(port) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3.s3_environment(proxy.port).items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(home))  # no credentials of the person who tests
        yield proxy


@pytest.fixture
def proxy(s3_port: int, tmp_path: Path) -> Iterator[s3.Proxy]:
    """A proxy before the S3 server; the environment leads S3 clients to it."""
    with _proxied_s3(s3_port, tmp_path) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def module_proxy(s3_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Proxy]:
    """The same, for all tests of a file."""
    with _proxied_s3(s3_port, tmp_path_factory.mktemp("home")) as proxy:
        yield proxy


@pytest.fixture
def s3_address(request: pytest.FixtureRequest, proxy: s3.Proxy) -> str:
    """The address of an empty store in the bucket."""
    return f"s3://{s3.BUCKET}/{abs(hash(request.node.nodeid)):x}"
