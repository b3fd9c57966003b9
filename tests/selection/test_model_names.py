"""Names that a scan gives are names of the model that is loaded: the files' differ in several families."""

import json

import families
import pytest
from model_directories import left_out, list_matrices, other_weights, unscanned
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from starling_train.config.fields import UserError

TEXT = {**families.SIZES, "num_hidden_layers": 2, "vocab_size": 160}
SEES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}


def rename(directory, change):
    """Rewrite the file's names."""
    path = directory / "model.safetensors"
    save_file({new: t for name, t in load_file(path).items() if (new := change(name))}, path)


def check_of_model(directory):
    """Every listed matrix has a parameter of the loaded model, and every matrix of its layers is listed."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    parameters = dict(model.named_parameters())
    records = list_matrices(directory)
    holders = {record.parameter for record in records.values()}
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    held = {n for n, p in parameters.items() if n.startswith(f"{decoder}.") and ("layers." in n or ".h." in n)}
    assert holders == {name for name in held if parameters[name].ndim > 1 and min(parameters[name].shape[-2:]) > 1}
    return records


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_every_family_s_matrices_are_the_loaded_model_s(name, tmp_path):
    records = check_of_model(families.write(name, tmp_path))
    assert unscanned(tmp_path) == ({"transformer.wpe.weight": 1} if name == "gpt2" else {})
    assert left_out(tmp_path) == {} and {record.layer for record in records.values()} == {0, 1, 2, 3}


def test_an_architecture_without_a_table_gets_its_layers_names(tmp_path):
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 160}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", word_embed_proj_dim=48, **sizes))
    model.save_pretrained(tmp_path)
    records = check_of_model(tmp_path)
    assert [r.type for r in records.values()][:6] == [
        "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"
    ]  # fmt: skip


def test_stacked_experts_without_a_table_are_scored_one_by_one(tmp_path):
    config = AutoConfig.for_model(
        "ernie4_5_moe", moe_num_experts=3, moe_k=2, moe_intermediate_size=32, moe_layer_start_index=1, **TEXT
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    records = check_of_model(tmp_path)
    assert sum(record.type == "mlp.experts.down_proj" for record in records.values()) == 3


def test_a_bare_decoder_s_file(tmp_path):
    families.write("qwen3", tmp_path)
    rename(tmp_path, lambda name: name.removeprefix("model."))
    assert next(iter(check_of_model(tmp_path))) == "model.layers.0.self_attn.q_proj"


def test_a_vision_language_model_s_file_gives_the_names_of_the_loaded_model(tmp_path):
    config = AutoConfig.for_model(
        "gemma3", text_config={**families.FAMILIES["gemma3"], **TEXT, "layer_types": families.ALTERNATING[:2]},
        vision_config={**SEES, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    records = check_of_model(tmp_path)
    assert next(iter(records)).startswith("model.language_model.layers.0.")
    assert any("vision_tower" in name for name in unscanned(tmp_path))
    assert "model.language_model.embed_tokens.weight" in other_weights(tmp_path)


def test_a_type_without_a_causal_language_model_is_refused_in_one_line(tmp_path):
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]}},
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48},
    )  # fmt: skip
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no causal language model of type 'qwen2_5_vl'; .*AutoModelForCausalLM"):
        list_matrices(tmp_path)


def test_layers_beyond_the_model_s_are_passed_over_and_counted(tmp_path):
    families.write("qwen3", tmp_path)
    path = tmp_path / "model.safetensors"
    held = load_file(path)
    more = {name.replace("layers.3.", "layers.4."): t.clone() for name, t in held.items() if "layers.3." in name}
    save_file(held | more, path)
    check_of_model(tmp_path)
    assert left_out(tmp_path) == {
        "not in the model that transformers makes of it, model.layers.4.mlp.down_proj.weight first": 7
    }


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_the_prefix_of_a_wrapper_is_named(prefix, tmp_path):
    families.write("llama3", tmp_path)
    rename(tmp_path, lambda name: prefix + name)
    with pytest.raises(UserError, match=rf"named '{prefix}\.\.\.', after a wrapper; save the model inside it again"):
        list_matrices(tmp_path)


def test_a_tied_head_is_no_parameter_of_its_own(tmp_path):
    families.write("llama3_tied", tmp_path / "tied")
    families.write("llama3", tmp_path / "not")
    groups = [set(other_weights(tmp_path / name).values()) for name in ("tied", "not")]
    assert groups == [{"embeddings", "norms"}, {"embeddings", "norms", "head"}]
    held = load_file(tmp_path / "tied/model.safetensors")  # some files hold it twice
    twice = held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    save_file(twice, tmp_path / "tied/model.safetensors")
    assert set(other_weights(tmp_path / "tied").values()) == {"embeddings", "norms"}


def test_a_file_of_an_unknown_type_keeps_its_own_names(tmp_path):
    families.write("llama3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    assert next(iter(list_matrices(tmp_path))) == "model.layers.0.self_attn.q_proj"
