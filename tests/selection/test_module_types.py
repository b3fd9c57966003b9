"""Module types: by architecture and exact name; experts and fused tensors are cut into their matrices."""

import json

import pytest
import torch
from axolotl import unfrozen
from model_directories import freeze_by, list_matrices, read_matrix, scan, select_by, unscanned
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from starling_train.config.fields import UserError
from starling_train.selection.module_types import classify, layer_of, name_in_layer, second_copies
from starling_train.selection.records import write_target_modules
from starling_train.selection.unfrozen_yaml import write_unfrozen_yaml

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def save(config, path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.embed_tokens", (64, 32), "embeddings"),
        ("lm_head", (64, 32), "head"),
        ("v_head", (1, 32), "head"),
        ("model.norm", (32,), "norm"),
        ("model.layers.1.self_attn.q_norm", (8,), "norm"),
        ("model.layers.1.self_attn.q_proj.bias", (32,), "vector"),
        ("model.layers.1.mlp.shared_expert_gate", (1, 32), "vector"),
        ("model.layers.1.self_attn.q_proj", (32, 32), "matrices"),
        ("transformer.layers.1.self_attn.q_proj", (32, 32), "matrices"),
        ("model.vision_tower.layers.1.self_attn.q_proj", (32, 32), "unknown"),  # another network's layer
        ("model.layers.1.self_attn.q_proj.lora_A", (8, 32), "unknown"),
        ("model.layers.1.my_self_attn.q_proj", (32, 32), "unknown"),
        ("model.layers.1.mlp.experts.gate_up_proj", (2, 64, 32), "unknown"),  # no Mistral has it
    ],
)
def test_kind(name, shape, kind):
    assert classify(name, shape, {"model_type": "mistral"}).kind == kind


def test_layer_and_name_in_it():
    assert layer_of("model.layers.17.mlp.down_proj") == 17
    assert layer_of("model.norm.weight") is None and layer_of("vision.layers.3.mlp.fc1") is None
    assert name_in_layer("model.layers.0.self_attn.qkv_proj.weight") == "self_attn.qkv_proj"
    assert name_in_layer("model.layers.12.mlp.experts.down_proj") == "mlp.experts.down_proj"


def test_order_is_that_of_the_forward_pass(tmp_path):
    config = Qwen2Config(**SMALL | {"num_hidden_layers": 11})
    save(config, tmp_path)
    layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layer += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert list(list_matrices(tmp_path)) == [f"model.layers.{i}.{name}" for i in range(11) for name in layer]
    assert unscanned(tmp_path) == {}


@pytest.mark.parametrize("config", [MixtralConfig(**SMALL, num_local_experts=3), Qwen3MoeConfig(
    **SMALL, num_experts=3, moe_intermediate_size=24, head_dim=8
)], ids=["mixtral", "qwen3_moe"])  # fmt: skip
def test_experts_have_the_same_names_fused_and_one_by_one(config, tmp_path):
    """The checkpoint holds each expert, the model (and a list made from config.json) stacks them."""
    model = save(config, tmp_path / "saved")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
    listed, from_config = list_matrices(tmp_path / "saved"), list_matrices(tmp_path / "config")
    assert listed == from_config
    assert unscanned(tmp_path / "saved") == unscanned(tmp_path / "config") == {}
    experts = [name for name in listed if ".experts." in name]
    assert len(experts) == 2 * 3 * 3 and len({listed[name].type for name in experts}) == 3
    # the same numbers, whichever way they are stored
    up = "block_sparse_moe.experts.2.w3" if config.model_type == "mixtral" else "mlp.experts.2.up_proj"
    fused = dict(model.named_parameters())["model.layers.1.mlp.experts.gate_up_proj"]
    rows = fused.shape[1] // 2
    assert torch.equal(read_matrix(tmp_path / "saved", f"model.layers.1.{up}"), fused[2, rows:])


def test_fused_experts_are_scanned_like_single_ones(tmp_path):
    from safetensors.torch import save_file

    model = save(MixtralConfig(**SMALL, num_local_experts=3), tmp_path / "single")
    (tmp_path / "fused").mkdir()
    save_file(
        {n: p.detach().contiguous() for n, p in model.named_parameters()},
        tmp_path / "fused/model.safetensors",
    )
    (tmp_path / "fused" / "config.json").write_bytes((tmp_path / "single" / "config.json").read_bytes())
    assert scan(tmp_path / "fused") == scan(tmp_path / "single")


def test_fused_qkv_and_gate_up_are_split(tmp_path):
    config = Phi3Config(**SMALL)
    model = save(config, tmp_path)
    listed = list_matrices(tmp_path)
    assert [r.type for r in listed.values() if r.layer == 0] == [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip
    qkv = dict(model.named_parameters())["model.layers.1.self_attn.qkv_proj.weight"]
    assert qkv.shape == (32 + 16 + 16, 32)
    for part, rows in (("q_proj", slice(0, 32)), ("k_proj", slice(32, 48)), ("v_proj", slice(48, 64))):
        name = f"model.layers.1.self_attn.qkv_proj[{part}]"
        assert listed[name].shape == tuple(qkv[rows].shape)
        assert torch.equal(read_matrix(tmp_path, name), qkv[rows])


def test_fused_rows_that_do_not_split():
    config = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(UserError, match=r"config\.json: 63 rows of .*qkv_proj"):
        classify("model.layers.0.self_attn.qkv_proj", (63, 32), config)
    with pytest.raises(UserError, match="num_attention_heads"):
        classify("model.layers.0.self_attn.qkv_proj", (64, 32), {"model_type": "phi3"})


def test_unknown_matrices_are_listed(tmp_path):
    from safetensors.torch import load_file, save_file

    save(Starcoder2Config(**SMALL), tmp_path)
    assert unscanned(tmp_path) == {}
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {f"model.layers.{i}.adapter.down.weight": torch.ones(4, 32) for i in range(2)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    assert unscanned(tmp_path) == {"model.layers.*.adapter.down.weight": 2}
    assert not any("adapter" in name for name in scan(tmp_path))


@pytest.mark.parametrize("config", [
    MixtralConfig(**SMALL, num_local_experts=3),
    Qwen3MoeConfig(**SMALL, num_experts=3, moe_intermediate_size=24, head_dim=8),
    Phi3Config(**SMALL),
], ids=["mixtral", "qwen3_moe", "phi3"])  # fmt: skip
def test_a_selection_is_what_trains_in_the_model(config, tmp_path):
    """Selection, its size, the file for axolotl and the one for PEFT all mean the same parameters, experts one by one
    in the checkpoint or not.
    """
    model = save(config, tmp_path)
    selected = select_by(scan(tmp_path), method="snr", top_percent=50)
    listing = list_matrices(tmp_path)
    table = freeze_by(model, selected)
    assert table.parameters_trained == sum(listing[name].size for name in selected)
    assert table.parameters_trained * 2 == sum(record.size for record in listing.values())
    write_unfrozen_yaml(selected, listing, tmp_path / "u.yaml")
    names = [name for name, _ in model.named_parameters()]
    assert unfrozen(tmp_path / "u.yaml", names) == [name.removesuffix(".weight") for name in table.names]
    write_target_modules(selected, listing, tmp_path / "t.json")
    targets = json.loads((tmp_path / "t.json").read_text())
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in targets["target_modules"])
    bare = targets.get("target_parameters", [])
    assert sorted([*bare, *(f"{name}.weight" for name in targets["target_modules"])]) == sorted(table.names)


def test_the_first_copy_of_a_decoder_counts():
    names = ["model.model.embed_tokens.weight", "model.model.layers.0.mlp.up_proj.weight", "model.lm_head.weight"]
    second = ["transformer.layers.0.mlp.up_proj.weight", "transformer.norm.weight", "transformer.embed_tokens.weight"]
    assert second_copies([*second, *names, "v_head.weight"]) == dict.fromkeys(second, "transformer.")
    assert second_copies([*second, "v_head.weight"]) == {}
