"""Models in GGUF files: refusals, and weights, config and tokenizer against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantlib.checkpoint.source import ReceiptSource
from quantlib.errors import InvalidInputError, StepError, StoreError
from quantlib.models import open_model
from quantlib.sources import gguf
from quantlib.sources.gguf import convert_gguf, dequantize_bf16
from quantlib.sources.gguf_model import gguf_problems, open_gguf
from quantlib.sources.opening import open_source
from quantlib.steps.fetch import fetch
from quantlib.store import LocalStore, StepOutput
from quantlib.store.partial import Partial
from quantlib.text.files import local_file
from quantlib.text.tokenizer import load_tokenizer
from quantlib.text.windows import Windowing, token_windows
from quantlib.watching.jobs import resolve_release

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


def said(path: Path) -> str:
    return "\n".join(map(str, gguf_problems(path)))


def converted(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as float32, through the bf16 that the checkpoint will hold."""
    model = open_gguf(path)
    result = {}
    for name, tensor in model.header.tensors.items():
        target = model.targets[name]
        bits = dequantize_bf16(path, tensor, target.heads, target.added)
        result[target.name] = (bits.astype(np.uint32) << 16).view(np.float32)
    return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_under_their_names(write_gguf, tmp_path, architecture, tied) -> None:
    expected = write_gguf(tmp_path / "m.gguf", architecture, tied=tied)
    weights = converted(tmp_path / "m.gguf")
    assert weights.keys() == expected.keys()
    assert ("lm_head.weight" in weights) is not tied
    for name, weight in weights.items():
        assert weight.shape == expected[name].shape
        # bf16 keeps eight bits: half a unit of the last is a relative 2**-9.
        np.testing.assert_allclose(weight, expected[name], rtol=2**-8, atol=0, err_msg=name)


def test_a_file_is_taken_as_it_was_pinned(write_gguf, tmp_path) -> None:
    path, store = tmp_path / "m.gguf", LocalStore(tmp_path / "store")
    write_gguf(path)
    release = resolve_release(str(path)).address
    assert fetch(store, release) == fetch(store, str(path))
    write_gguf(path, tied=False)
    with pytest.raises(StepError, match="has changed since it was looked at"):
        fetch(store, release)


def test_piecewise_equals_whole(write_gguf, tmp_path, monkeypatch) -> None:
    write_gguf(tmp_path / "m.gguf")
    whole = converted(tmp_path / "m.gguf")
    monkeypatch.setattr(gguf, "_CHUNK_BYTES", 5 * 4 * 64)
    pieces = converted(tmp_path / "m.gguf")
    for name in whole:
        np.testing.assert_array_equal(pieces[name], whole[name])


def test_rounding_is_to_nearest_even() -> None:
    values = {
        1.0: 0x3F80,
        1 + 2**-8: 0x3F80,
        1 + 3 * 2**-8: 0x3F82,
        1 + 2**-8 + 2**-20: 0x3F81,
        -1 - 3 * 2**-8: 0xBF82,
        3.4028235e38: 0x7F80,
        float("-inf"): 0xFF80,
        float("nan"): 0x7FC0,
        0.0: 0,
    }
    bits = gguf._round_to_bf16(np.array(list(values), np.float32))
    assert bits.tolist() == list(values.values())
    assert gguf._round_to_bf16(np.array([0x7FFFFFFF], np.uint32).view(np.float32)) == [0x7FC0]


def test_the_config_says_what_the_metadata_says(write_gguf, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen3", tied=False)
    assert open_gguf(tmp_path / "m.gguf").config == {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 50000.0,
        "vocab_size": 261,
        "tie_word_embeddings": False,
        "bos_token_id": 259,
        "eos_token_id": 260,
        "pad_token_id": None,
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "unsupported setting llama.rope.scaling.type = yarn"),
        ({"llama.rope.scaling.factor": 4.0}, "unsupported setting llama.rope.scaling.factor = 4.0"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window = 4096"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"split.count": 3}, "is one of 3 parts"),
    ],
)
def test_what_would_be_dropped_silently_is_refused(write_gguf, tmp_path, settings, says) -> None:
    write_gguf(tmp_path / "m.gguf", settings=settings)
    assert says in said(tmp_path / "m.gguf")


def test_settings_that_change_nothing_are_accepted(write_gguf, tmp_path: Path) -> None:
    neutral = {
        "llama.rope.scaling.type": "none",
        "llama.expert_count": 0,
        "split.count": 0,
        "general.license": "apache-2.0",
    }
    write_gguf(tmp_path / "m.gguf", settings=neutral)
    assert gguf_problems(tmp_path / "m.gguf") == []


def test_unknown_kinds_of_model_are_refused(write_gguf, tmp_path: Path) -> None:
    write_gguf(tmp_path / "gemma.gguf", "gemma2")
    assert "unsupported architecture 'gemma2'; supported: llama, qwen2, qwen3, gemma3" in said(
        tmp_path / "gemma.gguf"
    )
    write_gguf(tmp_path / "pre.gguf", pre="default")
    assert "unsupported tokenizer.ggml.pre 'default'; supported:" in said(tmp_path / "pre.gguf")


def test_all_tensor_problems_are_reported_together(write_gguf, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(
        path,
        leave_out="blk.1.ffn_up.weight",
        extra_tensors={
            "rope_freqs.weight": np.ones(8, np.float32),
            "blk.0.attn_q.bias": np.ones(64, np.float32),
        },
    )
    assert "rope_freqs.weight" in said(path)
    assert "unsupported tensors: blk.0.attn_q.bias" in said(path)
    assert "missing tensors: blk.1.ffn_up.weight" in said(path)
    write_gguf(path, settings={"llama.feed_forward_length": 128})
    assert "blk.0.ffn_gate.weight is [96, 64], not [128, 64]" in said(path)


@pytest.mark.parametrize("length", [0, 3, 20, 200, 5000, -1])
def test_a_truncated_file_is_refused(write_gguf, tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:length])
    assert str(path) in said(path)
    if length == -1:
        assert "truncated" in said(path)


def test_damaged_headers_end_in_a_message(write_gguf, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    sound = path.read_bytes()
    damage = np.random.default_rng(0)
    for position in damage.integers(0, 9000, 60):
        path.write_bytes(sound[:position] + b"\xff" * 8 + sound[position + 8 :])
        gguf_problems(path)
    path.write_bytes(b"GGML" + sound[4:])
    assert "is no GGUF file" in said(path)
    path.write_bytes(sound[:4] + b"\0\0\0\3" + sound[8:])
    assert "little-endian" in said(path)


def test_infinity_in_a_weight_names_the_tensor(write_gguf, silent, store, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", spoil="blk.1.ffn_norm.weight")
    output = StepOutput(store, tmp_path, Partial(store, "fetch", "x"), "runs/fetch/x")
    with pytest.raises(InvalidInputError, match=r"blk\.1\.ffn_norm\.weight: holds NaN or Inf in 1"):
        convert_gguf(open_gguf(tmp_path / "m.gguf"), output, silent)
    assert output.files == {}


def test_no_space_is_said_before_anything_is_written(
    write_gguf, silent, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    output = StepOutput(store, tmp_path / "scratch", Partial(store, "fetch", "x"), "runs/fetch/x")
    with pytest.raises(InvalidInputError, match="are to be written; free some"):
        convert_gguf(open_gguf(tmp_path / "m.gguf"), output, silent)
    assert not (tmp_path / "scratch").exists()


@pytest.fixture
def convert(write_gguf, silent, store, tmp_path: Path) -> Callable[..., Path]:
    """Converts a tiny GGUF file and returns the folder of the checkpoint."""

    def run(architecture: str, **options: object) -> Path:
        write_gguf(tmp_path / "m.gguf", architecture, **options)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        output = StepOutput(store, scratch, Partial(store, "fetch", "x"), "runs/fetch/x")
        types = convert_gguf(open_gguf(tmp_path / "m.gguf"), output, silent)
        assert types["Q4_0"] == 8
        for name, record in output.files.items():
            store.export_file(record.blob, tmp_path / "model" / name)
        return tmp_path / "model"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_what_transformers_loads(convert, tmp_path: Path, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = convert(architecture, tied=architecture != "qwen2")
    ours = AutoModelForCausalLM.from_pretrained(folder)
    # transformers 5.19 takes 128 for the head_dim of every Qwen3 file.
    corrected = {"head_dim": 16} if architecture == "qwen3" else {}
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, **corrected
    ).to(torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    left, right = ours.config.to_dict(), theirs.config.to_dict()
    for key in (
        "rope_parameters",
        "tie_word_embeddings",
        "hidden_activation" if architecture == "gemma3" else "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
    ):
        assert left[key] == right[key], key
    text = "hello <s> 2024  x\n\n1"
    tokens = AutoTokenizer.from_pretrained(folder)(text).input_ids
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")(text).input_ids
    # transformers 5.19 does not ask a Gemma's file whether texts begin with BOS.
    assert tokens == [*([ours.config.bos_token_id] if architecture == "gemma3" else []), *theirs]


def test_windows_of_a_gguf_file_begin_as_its_tokenizer_does(write_gguf, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello 2024 " * 60)
    for architecture, settings, opening in (
        ("gemma3", {}, ("<s>",)),
        ("llama", {}, ()),
        ("llama", {"tokenizer.ggml.pre": "llama-bpe"}, ("<s>",)),
    ):
        path = tmp_path / f"{len(opening)}-{architecture}.gguf"
        write_gguf(path, architecture, settings=settings)
        tokenizer = load_tokenizer(open_source(str(path)))
        made = token_windows("text", [local_file(text)], tokenizer, None, Windowing(4, 16, 0))
        assert made.opening == opening
        begins = [tokenizer.token_to_id(token) for token in opening]
        assert made.tokens[:, : len(opening)].tolist() == [begins] * 4
        assert not np.isin(made.tokens[:, len(opening) :], tokenizer.token_to_id("<s>")).any()


def test_a_gemma_that_llama_cpp_would_compute_otherwise_is_refused(write_gguf, tmp_path) -> None:
    path = tmp_path / "m.gguf"
    stated = {"gemma3.attention.sliding_window_pattern": 6, "gemma3.rope.freq_base_swa": 10000.0}
    write_gguf(path, "gemma3", settings=stated)
    assert gguf_problems(path) == []
    for name, value in (
        ("rope.scaling.factor", 8.0),
        ("attention.sliding_window_pattern", 4),
        ("final_logit_softcapping", 30.0),
    ):
        write_gguf(path, "gemma3", settings={f"gemma3.{name}": value})
        assert f"unsupported setting gemma3.{name} = {value}" in said(path)


@pytest.mark.slow
def test_the_tokenizer_does_what_llama_cpp_does(convert) -> None:
    """llama-bpe: a known word is one token whatever the merges, and texts start with bos."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(convert("llama", pre="llama-bpe"))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello").input_ids)
    assert tokens == ["<s>", "hello"]


@pytest.mark.slow
def test_smollm_splits_digits(convert) -> None:
    from transformers import AutoTokenizer

    folder = convert("llama", pre="smollm", settings={"tokenizer.ggml.add_bos_token": 0})
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_plan_sees_what_fetch_will_write(
    write_gguf, store, silent, tmp_path: Path, architecture: str
) -> None:
    write_gguf(tmp_path / "m.gguf", architecture)
    source = open_source(str(tmp_path / "m.gguf"))
    seen, _ = open_model(source)
    fetched, _ = open_model(ReceiptSource(store, fetch(store, str(tmp_path / "m.gguf"), silent)))
    assert seen.config == fetched.config
    assert {name: (info.dtype, info.shape) for name, info in seen.tensors.items()} == {
        name: (info.dtype, info.shape) for name, info in fetched.tensors.items()
    }
    text = "hello 2024"
    of_receipt = load_tokenizer(fetched.source)
    assert load_tokenizer(source).encode(text).ids == of_receipt.encode(text).ids
    with pytest.raises(StoreError, match="not there before it is converted"):
        seen.read("model.norm.weight")
