"""Selection: the published lists, counts, ties, budgets, controls, and what cannot be selected."""

import math
import random
from itertools import pairwise

import pytest
from model_directories import select_by

from starling_train.config.fields import UserError
from starling_train.selection.records import Record, read_records
from starling_train.selection.select import EVERYTHING


def make(scores: dict[str, list[float]], sizes: dict[str, int] | None = None) -> dict[str, Record]:
    """Records of `type -> scores by layer`, ordered by type as published files are."""
    records = {}
    for kind, values in scores.items():
        for layer, snr in enumerate(values):
            name = f"model.layers.{layer}.{kind}"
            records[name] = Record(name, kind, (sizes or {}).get(kind, ()), snr=snr)
    return records


def layers(selected: list[str], kind: str) -> list[int]:
    return [int(name.split(".")[2]) for name in selected if name.endswith(kind)]


@pytest.fixture
def mistral(data_dir):
    return read_records(data_dir / "snr" / "snr_results_mistralai-Mistral-7B-v0.1.json")


def test_published_top_quarter_and_half(mistral):
    quarter = select_by(mistral, method="snr", top_percent=25)
    assert len(quarter) == 56
    assert layers(quarter, "down_proj") == sorted([19, 20, 18, 21, 29, 1, 28, 22])
    assert layers(quarter, "q_proj") == sorted([0, 1, 15, 12, 11, 14, 9, 16])
    half = select_by(mistral, method="snr", top_percent=50)
    assert len(half) == 112 and set(quarter) < set(half)
    for kind in {record.type for record in mistral.values()}:
        chosen = {name for name in half if mistral[name].type == kind}
        others = [r.snr for r in mistral.values() if r.type == kind and r.module not in chosen]
        assert len(chosen) == 16 and min(mistral[name].snr for name in chosen) >= max(others)


def test_model_order_and_determinism(mistral):
    selected = select_by(mistral, method="snr")
    places = [mistral[name].layer for name in selected]
    assert places == sorted(places)
    shuffled = dict(random.Random(1).sample(list(mistral.items()), len(mistral)))
    assert set(select_by(shuffled, method="snr")) == set(selected)


@pytest.mark.parametrize(("percent", "count"), [(25, 1), (49.9, 1), (50, 2), (75, 3), (99.9, 3), (100, 4)])
def test_percent_is_cut_to_whole_matrices(percent, count):
    records = make({"up": [4, 3, 2, 1]})
    assert layers(select_by(records, method="snr", top_percent=percent), "up") == list(range(count))


def test_equal_scores_go_by_model_order():
    records = make({"up": [1, 2, 2, 2, 0]})
    assert layers(select_by(records, method="snr", top_percent=40), "up") == [1, 2]
    assert layers(select_by(records, method="lowest", top_percent=60), "up") == [0, 1, 4]
    backwards = dict(reversed(list(records.items())))
    assert layers(select_by(backwards, method="snr", top_percent=40), "up") == [1, 2]


def test_infinite_scores_rank_first_and_missing_ones_are_refused():
    records = make({"up": [5, math.inf, 7, math.inf]})
    assert layers(select_by(records, method="snr", top_percent=75), "up") == [1, 2, 3]
    for nothing in (None, math.nan):
        with pytest.raises(UserError, match=r"freeze\.scan: model\.layers\.1\.up has no SNR"):
            select_by(make({"up": [5, nothing, 7]}), method="snr", top_percent=50)
        # which the other methods do not need
        assert select_by(make({"up": [5, nothing, 7]}), method="random", top_percent=50)


def test_lowest_layer_keeps_the_number_and_lowers_the_rank():
    records = make({"up": [9, 8, 7, 6, 5, 4, 3, 2]})
    assert layers(select_by(records, method="snr", top_percent=25, lowest_layer=4), "up") == [4, 5]
    assert layers(select_by(records, method="snr", top_percent=100, lowest_layer=6), "up") == [6, 7]
    assert layers(select_by(records, method="last_layers", last_layers=4, lowest_layer=6), "up") == [6, 7]


def test_controls_take_as_many_of_each_type():
    records = make({"up": [1, 2, 3, 4], "down": [4, 3, 2, 1], "q": [1, 1, 1, 1]})
    for method in ("random", "lowest"):
        selected = select_by(records, method=method, top_percent=50)
        assert [len(layers(selected, kind)) for kind in ("up", "down", ".q")] == [2, 2, 2]
    assert layers(select_by(records, method="lowest", top_percent=50), "down") == [2, 3]
    draws = {tuple(select_by(records, method="random", top_percent=50, seed=seed)) for seed in range(20)}
    assert len(draws) > 10
    assert select_by(records, method="random", seed=3) == select_by(records, method="random", seed=3)


def test_layers():
    records = make({"up": [1] * 6, "down": [1] * 6})
    assert select_by(records, method="last_layers", last_layers=1) == [
        "model.layers.5.up",
        "model.layers.5.down",
    ]
    assert layers(select_by(records, method="layers", layers=[4, 0]), "up") == [0, 4]
    assert len(select_by(records, method="last_layers", last_layers=99)) == 12
    with pytest.raises(UserError, match=r"freeze\.layers: the model has no layer 6, only 0 to 5"):
        select_by(records, method="layers", layers=[1, 6])


def test_whole_layers_by_mean_rank():
    # ranks of up: 1 0 3 2, of down: 0 1 2 3; means .5 .5 2.5 2.5; SNR of up is far larger, which must not
    # matter
    records = make({"up": [300, 400, 100, 200], "down": [0.4, 0.3, 0.2, 0.1]})
    assert layers(select_by(records, method="snr", unit="layer", top_percent=50), "up") == [0, 1]
    one = select_by(records, method="snr", unit="layer", top_percent=25)
    assert one == ["model.layers.0.up", "model.layers.0.down"]  # the tie by model order
    assert len(select_by(records, method="random", unit="layer", top_percent=50)) == 4


def test_global_scope():
    records = make({"up": [30, 40, 10, 20], "down": [4, 3, 2, 1]})
    selected = select_by(records, method="snr", scope="global", top_percent=50)
    assert (layers(selected, "up"), layers(selected, "down")) == ([0, 1, 2, 3], [])


def test_parameter_budget():
    records = make({"up": [1, 2, 3, 4], "down": [4, 3, 2, 1]}, {"up": (10, 10), "down": (5, 10)})
    names = ["model.layers.0.down", "model.layers.3.up"]
    assert select_by(records, method="snr", max_trainable=150) == names
    assert select_by(records, method="snr", max_trainable=299) == [
        "model.layers.0.down",
        *["model.layers.2.up", "model.layers.3.up"],
    ]
    everything = select_by(records, method="snr", max_trainable=600)
    assert len(everything) == 8
    chosen = [set(select_by(records, method="snr", max_trainable=budget)) for budget in range(100, 601, 25)]
    assert all(small <= large for small, large in pairwise(chosen))
    for budget, names in zip(range(100, 601, 25), chosen, strict=True):
        assert sum(records[name].size for name in names) <= budget


def test_budget_is_a_growing_percentage(mistral):
    """Where all of a type have one size and the budget is exact, a budget selects what the percentage
    does.
    """
    sizes = {"mlp.down_proj": (4096, 14336), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096)}
    sizes |= {f"self_attn.{x}_proj": (4096, 4096) for x in "qo"} | {f"self_attn.{x}_proj": (1024, 4096) for x in "kv"}
    records = {n: Record(n, r.type, sizes[r.type], snr=r.snr) for n, r in mistral.items()}
    quarter = select_by(records, method="snr", top_percent=25)
    parameters = sum(records[name].size for name in quarter)
    assert parameters == 1_744_830_464  # facts: 1.745 B, 24 % of the model
    assert select_by(records, method="snr", max_trainable=parameters) == quarter
    assert select_by(records, method="snr", max_memory_gb=parameters * 20 / 1e9 + 0.01) == quarter


def test_budget_of_layers_and_missing_shapes():
    records = make({"up": [4, 3, 2, 1], "down": [4, 3, 2, 1]}, {"up": (10, 10), "down": (5, 10)})
    assert layers(select_by(records, method="snr", unit="layer", max_trainable=310), "up") == [0, 1]
    with pytest.raises(UserError, match=r"freeze\.scan: .* has no shape"):
        select_by(make({"up": [1, 2]}), method="snr", max_trainable=10)


def test_everything():
    assert select_by(make({"up": [1]}), method="none") == [EVERYTHING]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_percent": 24.9}, r"^freeze\.top_percent: 24\.9 selects no matrix"),
        ({"top_percent": 0}, r"^freeze\.top_percent: 0 selects no matrix"),
        ({"lowest_layer": 4}, r"^freeze\.top_percent: .*freeze\.lowest_layer=4"),
        ({"max_trainable": 3}, r"^freeze\.max_trainable: 3 is less"),
        ({"max_memory_gb": 1e-9}, r"^freeze\.max_memory_gb: 1e-09 is less"),
        ({"method": "layers"}, r"^freeze\.layers: selects no matrix"),
    ],
)
def test_nothing_is_never_selected(settings, message):
    records = make({"up": [4, 3, 2, 1], "down": [1, 2, 3, 4]}, {"up": (2, 2), "down": (2, 2)})
    with pytest.raises(UserError, match=message):
        select_by(records, **{"method": "snr", "top_percent": 25} | settings)


def stacked(scores: dict[str, list[list[float]]], size=(10, 10)) -> dict[str, Record]:
    """Records of experts: `type -> layer -> score of each expert`; the experts of a layer share a tensor."""
    records = {}
    for kind, of_layers in scores.items():
        for layer, values in enumerate(of_layers):
            for expert, snr in enumerate(values):
                holder = f"model.layers.{layer}.mlp.{'down' if kind == 'w2' else 'gate_up'}"
                name = f"model.layers.{layer}.mlp.{expert}.{kind}"
                records[name] = Record(name, kind, size, snr=snr, holder=holder)
    return records


def test_matrices_of_one_tensor_are_taken_together():
    # places in layers 0 | 1: w1 0 3 | 1 2, w3 2 3 | 0 1; the mean is lower in layer 1, the best expert is in layer 0
    records = stacked({"w1": [[9, 1], [8, 7]], "w3": [[2, 1], [4, 3]], "w2": [[4, 3], [2, 1]]})
    selected = select_by(records, method="snr", top_percent=50)
    assert {records[name].holder for name in selected} == {"model.layers.1.mlp.gate_up", "model.layers.0.mlp.down"}
    assert len(selected) == 6  # whole tensors, and as many of each kind as the percentage says
    # a budget counts whole tensors: 400 for gate_up, 200 for down
    assert [records[n].holder[-4:] for n in select_by(records, method="snr", max_trainable=599)] == ["e_up"] * 4
    assert len(select_by(records, method="snr", max_trainable=600)) == 6
    for method in ("random", "lowest"):
        chosen = {records[name].holder for name in select_by(records, method=method, top_percent=50)}
        assert len(chosen) == 2 and sum(name.endswith("down") for name in chosen) == 1


def test_tensors_of_many_matrices_rank_fairly_beside_single_ones():
    # by shares of the type: layer 1's experts have places 0 and 1 of 4, its q place 1 of 2, layer 0's q place 0
    records = stacked({"w2": [[1, 2], [4, 3]]}) | make({"q": [5, 4]}, {"q": (10, 10)})
    selected = select_by(records, method="snr", scope="global", top_percent=50)
    assert [name.split(".", 2)[2] for name in selected] == ["0.q", "1.mlp.0.w2", "1.mlp.1.w2"]


def test_a_plan_without_scores_does_not_depend_on_the_seed():
    records = make({"up": [None] * 3, "down": [None] * 3}, {"up": (10, 10), "down": (5, 10)})
    for seed in range(5):
        selected = select_by(records, method="smallest", scope="global", max_trainable=60, seed=seed)
        assert selected == ["model.layers.0.down"]
