"""What names code on a hub is left out of configs, wherever it stands."""

from quantlib.checkpoint.remote_code import is_config, without_code

CONFIG = {
    "model_type": "llama",
    "auto_map": {"AutoConfig": "evil/repo--configuration.Evil"},
    "text_config": {"auto_map": {}, "hidden_size": 8},
    "layers": [{"custom_generate": "evil/repo", "kept": 1}],
    "custom_pipelines": {"text-generation": {"impl": "evil.Pipeline"}},
}


def test_what_names_code_is_left_out_and_told() -> None:
    rest, removed = without_code("config.json", CONFIG)
    assert rest == {
        "model_type": "llama",
        "text_config": {"hidden_size": 8},
        "layers": [{"kept": 1}],
    }
    assert sorted(removed) == [
        "config.json: auto_map",
        "config.json: custom_pipelines",
        "config.json: layers.0.custom_generate",
        "config.json: text_config.auto_map",
    ]
    assert without_code("config.json", rest) == (rest, [])


def test_which_files_are_configs() -> None:
    names = ("config.json", "tokenizer_config.json", "processor_config.json", "tokenizer.json")
    assert [is_config(name) for name in names] == [True, True, True, False]
