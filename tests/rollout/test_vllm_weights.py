"""What an engine with weights of its own is given: the checkpoint's names and tensors, as much as it needs."""

import families
import pytest
import torch
from safetensors.torch import load_file

from starling_train.config.sections import LoraConfig
from starling_train.models import adapters
from starling_train.rollout.vllm.weights import fingerprint, rounded_up, tensors, trained_names, weights_of


def written(model, directory) -> dict[str, torch.Tensor]:
    """What transformers itself saves of the model."""
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["llama3", "llama3_tied", "gemma3", "phi3", "mixtral", "qwen3_moe", "gpt_neox", "gpt2"]
)
def test_all_weights_are_those_of_the_checkpoint(name, tmp_path):
    model = families.model_of(name)
    given, expected = dict(tensors(model)), written(model, tmp_path)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in expected)


def test_adapters_are_merged_as_in_a_written_model(tmp_path):
    model = families.model_of("qwen2.5")
    names = ["model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"]
    adapters.add(model, names, LoraConfig(rank=2))
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = written(adapters.merged(model), tmp_path)
    given = dict(tensors(model))
    assert given.keys() == expected.keys() and trained_names(model) == set(names)
    assert all(torch.equal(given[key], expected[key]) for key in expected)
    some = dict(tensors(model, rounded_up(trained_names(model), weights_of(model))))
    projections = [f"model.layers.1.self_attn.{one}_proj.{kind}" for one in "qkv" for kind in ("weight", "bias")]
    assert some.keys() == {*projections, "model.layers.2.mlp.down_proj.weight"}
    assert all(torch.equal(some[key], expected[key]) for key in some)


def test_experts_come_as_a_whole():
    model = families.model_of("mixtral")
    (experts,) = {name.rpartition(".")[0] for name in weights_of(model) if "layers.1.mlp.experts" in name}
    one = next(name for name in weights_of(model) if name.startswith(experts))
    given = dict(tensors(model, rounded_up({one}, weights_of(model))))
    assert len(given) == 4 * 3 and all(".1.block_sparse_moe.experts." in name for name in given)


def test_what_is_put_together_is_given_together():
    known = [f"layers.{layer}.{name}" for layer in (0, 1) for name in (
        "attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight", "attn.o_proj.weight",
        "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "norm.weight")]  # fmt: skip
    assert rounded_up({"layers.1.attn.k_proj.weight"}, known) == set(known[8:11])
    assert rounded_up({"layers.0.mlp.up_proj.weight", "layers.0.norm.weight"}, known) == {known[4], known[5], known[7]}
    assert rounded_up({"layers.0.attn.o_proj.weight"}, known) == {known[3]}
    assert rounded_up(set(), known) == set()


def test_a_fingerprint_changes_with_the_smallest_change_of_what_trains():
    model = families.model_of("llama3").requires_grad_(False)
    matrix = model.get_parameter("model.layers.0.mlp.down_proj.weight").requires_grad_(True)
    before = fingerprint(model)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1)
        assert fingerprint(model) == before
        rows = matrix[:2].clone()
        matrix[0, 0] = torch.nextafter(matrix[0, 0], torch.tensor(9.0))
        assert fingerprint(model) != before
        matrix[:2] = rows
        assert fingerprint(model) == before
        matrix[0, :2] = matrix[0, :2].flip(0)  # neighbours that changed places
        assert fingerprint(model) != before
