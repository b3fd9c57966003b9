"""Sizes of every family from config.json alone: what the memory plan and the time of a step are made of."""

import shutil

import families
import pytest

from starling_train.config.sections import FreezeConfig
from starling_train.models.source import ModelSource
from starling_train.planning import shapes
from starling_train.planning.what_trains import what_trains_of


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_parameters_are_those_of_the_model(name, tmp_path):
    model = families.model_of(name)
    model.config.save_pretrained(tmp_path)
    shape = shapes.read(ModelSource(tmp_path, "model.path"))
    decoder = sum(p.numel() for p in model.get_decoder().parameters())
    everything = sum(p.numel() for p in model.parameters())
    assert (shape.hidden, shape.layers, shape.heads, shape.vocabulary) == (48, 4, 4, 160)
    assert shape.decoder_parameters() == decoder and shape.parameters() == everything
    table = what_trains_of(FreezeConfig(method="layers", layers=[2, 3]), shape.config(), 0)
    assert table.parameters_of == everything and table.lowest_layer == 2
    assert 0 < table.parameters_trained <= 2 * shape.layer_parameters()


def test_of_experts_those_that_a_token_goes_through_count():
    shape = shapes.Shape.of(families.config_of("qwen3_moe"))
    assert shape.intermediate == 2 * 32 and shape.kv_values() == 2 * 4 * 2 * 16


def test_the_plan_names_the_set_that_the_run_will_read(tmp_path, small_models, capsys):
    for kind, reads, other in (
        ("starling_7b", "pytorch_model.bin", "model.safetensors"),
        ("sequence_classification", "model.safetensors", "pytorch_model.bin"),
    ):
        directory = shutil.copytree(small_models / "reward", tmp_path / kind)
        (directory / "model.safetensors").write_bytes(b"x")
        shapes.find(str(directory), "reward.path", shapes.KNOWN_REWARD_MODELS, kind)
        assert f"reward.path: {directory}: reads {reads}, not {other} beside it" in capsys.readouterr().err
