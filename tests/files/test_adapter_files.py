"""An adapter in a model's directory is told as one, with its base and the way to merge it; the way works."""

import json
import re

import pytest
import torch
from model_directories import source
from safetensors.torch import load_file, save_file

from starling_train.config.fields import UserError
from starling_train.files import adapter_files
from starling_train.models.reward.source import RewardSource
from starling_train.models.source import ModelSource

PEFT = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}


def told(directory):
    with pytest.raises(UserError) as error:
        source(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("files", "of"),
    [
        ({"adapter_config.json": PEFT, "adapter_model.safetensors": ""}, "of org/base (adapter_config.json and"),
        (
            {"adapter_config.json": PEFT, "adapter_model.bin": ""},
            "of org/base (adapter_config.json and adapter_model.bin",
        ),
        ({"adapter_config.json": PEFT}, "of org/base (adapter_config.json), not"),
        ({"adapter_config.json": {"model": "org/mlx"}, "adapters.safetensors": ""}, "of org/mlx"),
        ({"adapter_config.json": PEFT | {"base_model_name_or_path": None}}, "of a model that it does not name"),
        ({"adapter_config.json": ""}, "of a model that it does not name"),
        ({"adapter_model.safetensors": ""}, "of a model that it does not name (adapter_model.safetensors)"),
        (
            {"adapter_model.bin": "", "config.json": {"model_type": "llama"}},
            "of a model that it does not name (adapter",
        ),
        ({"adapter_config.json": PEFT, "config.json": {"model_type": "llama"}}, "of org/base (adapter_config.json)"),
    ],
)
def test_an_adapter_alone_is_told_with_its_base(tmp_path, files, of):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content) if content else "")
    line = told(tmp_path)
    assert line.startswith(f"model.path: {tmp_path} holds an adapter {of}") and "not a model; merge it first" in line


@pytest.mark.parametrize(
    ("file", "values", "way"),
    [
        ("adapters.safetensors", {"model": "org/mlx", "fine_tune_type": "lora"}, "first: `mlx_lm.fuse` of the package"),
        ("adapter_model.safetensors", PEFT | {"peft_type": "PREFIX_TUNING"}, "type PREFIX_TUNING is no change of weig"),
    ],
)
def test_adapters_that_peft_does_not_merge_are_told_so(tmp_path, file, values, way):
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    (tmp_path / file).write_text("")
    assert way in told(tmp_path) and "AutoPeft" not in told(tmp_path)


def test_weights_of_an_adapter_without_its_configuration_are_only_named_beside_a_model(tmp_path, tiny_mistral, capsys):
    tiny_mistral(layers=1).save_pretrained(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert len(source(tmp_path).entries) == 12
    assert "reads model.safetensors, not adapter_model.safetensors beside it" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["model.safetensors.index.json", "pytorch_model.bin"])
def test_an_adapter_beside_weights_of_any_form_is_refused(tmp_path, weights):
    for name, content in (("adapter_config.json", PEFT), (weights, {"weight_map": {"a": "b"}})):
        (tmp_path / name).write_text(json.dumps(content))
    assert "(adapter_config.json) beside a model's weights, and transformers would add it to them; if it" in told(
        tmp_path
    )


def test_a_tokenizer_is_read_from_an_adapters_directory(tmp_path, small_models):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT))
    for file in (small_models / "policy").glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(ModelSource.open_tokenizer(tmp_path, "reward.tokenizer").tokenizer) > 100
    opened = RewardSource.open("starling_7b", small_models / "reward", tmp_path)
    assert opened.tokens.directory == tmp_path
    with pytest.raises(UserError, match=r"^reward\.path: .* holds an adapter of org/base"):
        RewardSource.open("starling_7b", tmp_path, tmp_path)


def test_a_checkpoint_of_our_own_run_is_told_with_the_command_that_merges_it(tmp_path):
    step = tmp_path / "checkpoints" / "step_000007"
    step.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "trainable.safetensors"):
        (step / name).write_text(json.dumps(PEFT))
    assert "python -m starling_train.export run_dir=RUN checkpoint=step_000007 output=NEW, and give NEW" in told(step)
    (tmp_path / "config.yaml").write_text("name: run\n")
    assert f"run_dir={tmp_path} checkpoint=step_000007 output=NEW" in told(step)
    assert "is a checkpoint of a run, an adapter of org/base, not a whole model; merge it first: " in told(step)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_the_named_way_merges_an_adapter_into_its_base(tmp_path, tiny_mistral, task):
    import peft
    import transformers

    tiny_mistral(layers=1).save_pretrained(tmp_path / "base")
    if task == "SEQ_CLS":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type=task, r=2, target_modules=["up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    line = told(tmp_path / "adapter")
    assert f"an adapter of {tmp_path / 'base'} (" in line
    code = re.search(r"`(AutoPeftModelFor.*)`", line)[1].replace("NEW", repr(str(tmp_path / "new")))
    eval(code, vars(peft))
    expected = adapted.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "new" / "model.safetensors")
    assert merged.keys() == expected.keys() and all(torch.equal(merged[name], expected[name]) for name in merged)
    adapter_files.check(tmp_path / "new", "model.path")
