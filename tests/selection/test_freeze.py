"""Freezing: what was named trains and nothing else; the table, the lowest layer, the pattern files."""

import re

import pytest
import torch
import yaml
from axolotl import unfrozen
from model_directories import freeze_by, select_by

from starling_train.config.fields import UserError
from starling_train.selection.records import Record
from starling_train.selection.unfrozen_yaml import write_unfrozen_yaml

DOWN, Q = "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def records_of(model) -> dict[str, Record]:
    names = [n.removesuffix(".weight") for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    return {n: Record(n, ".".join(n.split(".")[3:])) for n in names}


def test_exactly_what_was_named(tiny_mistral):
    model = tiny_mistral(layers=12)
    names = ["model.layers.1.mlp.down_proj", "model.layers.10.self_attn.q_proj"]
    table = freeze_by(model, names)
    assert trainable(model) == {f"{name}.weight" for name in names}  # not layer 11, not layer 0
    assert table.names == tuple(f"{name}.weight" for name in names)
    assert table.lowest_layer == 1
    assert table.parameters_trained == 32 * 64 + 32 * 32
    assert table.parameters_of == sum(p.numel() for p in model.parameters())
    # and again, with another selection: nothing is left over
    freeze_by(model, [Q])
    assert trainable(model) == {f"{Q}.weight"}


def test_table(tiny_mistral):
    table = freeze_by(tiny_mistral(layers=3), [DOWN, Q])
    rows = {row.type: (row.trained, row.of, row.parameters_trained, row.parameters_of) for row in table.rows}
    assert rows["mlp.down_proj"] == (1, 3, 2048, 6144)
    assert rows["self_attn.q_proj"] == (1, 3, 1024, 3072)
    assert rows["self_attn.k_proj"] == (0, 3, 0, 1536)
    assert rows["embeddings"] == rows["head"] == (0, 1, 0, 97 * 32)
    assert rows["norms"] == (0, 7, 0, 7 * 32)
    assert (table.total.trained, table.total.of) == (2, 3 * 9 + 3)
    text = table.render()
    assert re.search(r"^mlp\.down_proj +1 of +3 +2,048 +6,144 +33\.3%$", text, re.M)
    assert text.splitlines()[-1].startswith("total") and len(text.splitlines()) == 2 + len(table.rows)
    assert len({len(line) for line in text.splitlines()}) == 1


def test_embeddings_head_and_norms(tiny_mistral):
    model = tiny_mistral(layers=3)
    assert freeze_by(model, [Q], head=True).lowest_layer == 2
    assert trainable(model) == {f"{Q}.weight", "lm_head.weight"}
    assert freeze_by(model, [], head=True).lowest_layer == 3
    assert freeze_by(model, [Q], embeddings=True).lowest_layer == 0
    assert "model.embed_tokens.weight" in trainable(model)
    # norms of the layers that train and the final one: others would cost the frozen prefix
    assert freeze_by(model, [Q], norms=True).lowest_layer == 2
    assert trainable(model) - {f"{Q}.weight"} == {
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.post_attention_layernorm.weight",
        "model.norm.weight",
    }


def test_everything_trains(tiny_mistral):
    model = tiny_mistral()
    table = freeze_by(model, select_by(records_of(model), method="none"))
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert table.lowest_layer == 0 and table.parameters_trained == table.parameters_of


def test_only_the_selection_moves(tiny_mistral):
    model = tiny_mistral()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    freeze_by(model, [DOWN, Q])
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"{DOWN}.weight", f"{Q}.weight"}


def test_a_name_that_matches_nothing(tiny_mistral):
    model = tiny_mistral(layers=3)
    for wrong in ("model.layers.3.mlp.down_proj", "model.layers.1.mlp.down", "layers.1.mlp.down_proj", ".*"):
        with pytest.raises(UserError, match=re.escape(f"the model has no {wrong}")):
            freeze_by(model, [DOWN, wrong])


def test_nothing_selected(tiny_mistral):
    with pytest.raises(UserError, match="nothing would train"):
        freeze_by(tiny_mistral(), [])


def test_tied_embeddings(tiny_mistral):
    model = tiny_mistral(tie_word_embeddings=True)
    assert freeze_by(model, [Q]).parameters_of == sum(p.numel() for p in model.parameters())
    for one in ({"head": True}, {"embeddings": True}):
        with pytest.raises(UserError, match=r"freeze\.head: .*one tensor"):
            freeze_by(model, [Q], **one)
    assert freeze_by(model, [Q], head=True, embeddings=True).lowest_layer == 0


def test_biases_stay_frozen():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(
        Qwen2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, vocab_size=64, pad_token_id=0)
    )  # fmt: skip
    freeze_by(model, ["model.layers.1.self_attn.q_proj"])
    assert trainable(model) == {"model.layers.1.self_attn.q_proj.weight"}


def test_experts_that_share_a_tensor_train_together():
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, vocab_size=64, num_local_experts=2)
    )  # fmt: skip
    experts = [f"model.layers.1.block_sparse_moe.experts.{e}.{w}" for e in (0, 1) for w in ("w1", "w3")]
    table = freeze_by(model, experts)
    assert trainable(model) == {"model.layers.1.mlp.experts.gate_up_proj"}
    assert table.lowest_layer == 1 and table.parameters_trained == 2 * 96 * 32
    with pytest.raises(UserError, match=r"gate_up_proj is one tensor, and .*experts\.1\.w1 in it is not selected"):
        freeze_by(model, experts[:2])
    # the router has one name in the model and another in the checkpoint
    freeze_by(model, ["model.layers.0.block_sparse_moe.gate"])
    assert trainable(model) == {"model.layers.0.mlp.gate.weight"}


def test_yaml_there_and_back(tmp_path, tiny_mistral):
    model, path = tiny_mistral(layers=12), tmp_path / "unfrozen.yaml"
    names = [n for n, _ in model.named_parameters()]
    selected = ["model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj", "model.layers.11.mlp.down_proj"]
    write_unfrozen_yaml(selected, records_of(model), path)
    assert path.read_text().splitlines() == [
        "unfrozen_parameters:",
        "# mlp.up_proj layers",
        r"- '^model[.]layers[.]1[.]mlp[.]up_proj[.]weight$'",
        "# mlp.down_proj layers",
        r"- '^model[.]layers[.]1[.]mlp[.]down_proj[.]weight$'",
        r"- '^model[.]layers[.]11[.]mlp[.]down_proj[.]weight$'",
    ]
    assert set(unfrozen(path, names)) == set(selected)
    # escaped and anchored: no pattern takes along a name that only looks like it
    patterns = [line[3:-1] for line in path.read_text().splitlines() if line.startswith("- ")]
    near = [
        "model.layers.1.mlp.down_proj.weight_scale",
        "model.layers.1xmlp.down_proj.weight",
        "x" + names[3],
    ]
    assert not any(re.match(pattern, name) for pattern in patterns for name in near)
    assert [p.name for p in tmp_path.iterdir()] == ["unfrozen.yaml"]


def test_yaml_names_what_trains_besides(tmp_path, tiny_mistral):
    model, path = tiny_mistral(), tmp_path / "unfrozen.yaml"
    table = freeze_by(model, [DOWN], head=True, norms=True)
    write_unfrozen_yaml([DOWN], records_of(model), path, table.names)
    names = [n for n, _ in model.named_parameters()]
    assert {n for n in names if n.removesuffix(".weight") in unfrozen(path, names)} == set(table.names)


def test_yaml_of_everything(tmp_path, tiny_mistral):
    model, path = tiny_mistral(), tmp_path / "unfrozen.yaml"
    write_unfrozen_yaml(["*"], records_of(model), path, [n for n, _ in model.named_parameters()])
    assert len(unfrozen(path, [n for n, _ in model.named_parameters()])) == 30


@pytest.mark.parametrize(
    "escaped",
    [lambda pattern: re.sub(r"\.(?!\+)", "\\.", pattern), lambda pattern: pattern.replace(".", "\\.")],
    ids=["axolotl now", "axolotl before"],
)
def test_axolotl_understands_the_patterns(tmp_path, tiny_mistral, escaped):
    """axolotl escapes the dots of a pattern before it compiles it; an escape of our own would become a backslash."""
    model, path = tiny_mistral(layers=12), tmp_path / "u.yaml"
    names = [name for name, _ in model.named_parameters()]

    def unfrozen(selected):
        write_unfrozen_yaml(selected, records_of(model), path)
        patterns = [re.compile(escaped(pattern)) for pattern in yaml.safe_load(path.read_text())["unfrozen_parameters"]]
        return [name for name in names if any(pattern.match(name) for pattern in patterns)]

    assert unfrozen([DOWN, Q]) == [f"{DOWN}.weight", f"{Q}.weight"]
    assert unfrozen(["*"]) == names


def test_yaml_names_the_parameters_of_the_model(tmp_path):
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    parts = [Record(f"model.layers.0.block_sparse_moe.experts.{e}.{w}", w, holder=stack) for e in (0, 1) for w in "ab"]
    records = {record.module: record for record in parts}
    write_unfrozen_yaml(list(records), records, tmp_path / "u.yaml")
    assert unfrozen(tmp_path / "u.yaml", [stack, f"{stack}x"]) == [stack]
    assert "# mlp.experts.gate_up_proj layers" in (tmp_path / "u.yaml").read_text()
    with pytest.raises(UserError, match=r"gate_up_proj is one tensor, and .*experts\.1\.b in it is not selected"):
        write_unfrozen_yaml(list(records)[:3], records, tmp_path / "u.yaml")
