"""What is published around the weights, held against the original's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from quantlib.checkpoint.source import FolderSource
from quantlib.evaluation.likeness import config_findings, file_findings

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "torch_dtype": "bfloat16",
}
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def write(folder: Path, *, config: Any = CONFIG, bos: bool = True, template: str = TEMPLATE) -> Any:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<s>": 0, "<unk>": 1} | {chr(c): i for i, c in enumerate(range(32, 127), 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return FolderSource(folder)


@pytest.fixture
def original(tmp_path: Path) -> FolderSource:
    return write(tmp_path / "original")


def test_a_faithful_copy_has_no_findings(original: FolderSource, tmp_path: Path) -> None:
    quantized = CONFIG | {
        "quantization_config": {"quant_method": "gptq"},
        "torch_dtype": "float16",
        "transformers_version": "4.1",
        "tie_word_embeddings": True,
    }
    assert file_findings(original, write(tmp_path / "copy", config=quantized)) == []


def test_another_rope_scaling_is_named(original: FolderSource, tmp_path: Path) -> None:
    scaled = CONFIG | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (finding,) = file_findings(original, write(tmp_path / "copy", config=scaled))
    assert finding.startswith("config.json: rope_")
    assert finding.endswith("factor is 4.0, the original's is 8.0")


def test_rope_scaling_that_was_left_out_is_named(original: FolderSource, tmp_path: Path) -> None:
    bare = {name: value for name, value in CONFIG.items() if name != "rope_scaling"}
    findings = file_findings(original, write(tmp_path / "copy", config=bare))
    assert any("rope" in finding and "factor" in finding for finding in findings)


def test_what_a_library_writes_in_another_way_is_the_same() -> None:
    written = {name: value for name, value in CONFIG.items() if name != "rope_theta"}
    del written["rope_scaling"]
    parameters = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    written |= {"rope_parameters": parameters, "attention_bias": False, "hidden_act": "silu"}
    assert config_findings(CONFIG, written) == []


def test_an_unknown_family_is_compared_as_it_is_written() -> None:
    unknown = {"model_type": "nobody-knows", "gate_scale": 2}
    assert config_findings(unknown, unknown | {"gate_scale": 3}) == [
        "config.json: gate_scale is 3, the original's is 2"
    ]
    many = config_findings(unknown, unknown | dict.fromkeys("abcde", 1))
    assert many[-1] == "config.json: 2 more fields are not the original's"


def test_a_dropped_bos_is_named(original: FolderSource, tmp_path: Path) -> None:
    assert file_findings(original, write(tmp_path / "copy", bos=False)) == [
        "the tokenizer puts no <s> around a text, as the original's does"
    ]


def test_another_vocabulary_is_named(original: FolderSource, tmp_path: Path) -> None:
    source = write(tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer.json"
    read = json.loads(path.read_text())
    vocabulary = read["model"]["vocab"]
    vocabulary["q"], vocabulary["u"] = vocabulary["u"], vocabulary["q"]
    path.write_text(json.dumps(read))
    assert file_findings(original, source) == [
        "the tokenizer reads text as other tokens than the original's"
    ]


@pytest.mark.parametrize(
    ("template", "finding"),
    [
        ("{% for m in messages %}{{ m.content", "the chat template does not render: "),
        ("{{ messages[0].content + 1 }}", "the chat template does not render: "),
        ("", "there is no chat template, and the original has one"),
        (
            "{{ messages[0].content }}",
            "the chat template renders conversations in another way than the original's",
        ),
    ],
)
def test_a_broken_template_is_named(
    original: FolderSource, tmp_path: Path, template: str, finding: str
) -> None:
    (found,) = file_findings(original, write(tmp_path / "copy", template=template))
    assert found.startswith(finding)


def test_a_template_that_is_broken_in_the_original_is_its_own(tmp_path: Path) -> None:
    broken = write(tmp_path / "original", template="{{ messages[0].content + 1 }}")
    assert file_findings(broken, write(tmp_path / "copy")) == []


def test_a_checkpoint_without_a_tokenizer_is_not_asked_for_one(
    original: FolderSource, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(CONFIG))
    assert file_findings(original, FolderSource(tmp_path / "bare")) == []
