"""Files of a scan: ours, the two published schemas, strict JSON, and what is refused."""

import json
import sys

import pytest

from starling_train.config.fields import UserError
from starling_train.selection.matching import fill, match_records
from starling_train.selection.records import (
    Record,
    read_records,
    write_records,
    write_spectrum_scan,
    write_target_modules,
)

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
RECORDS = {
    DOWN: Record(DOWN, "mlp.down_proj", (4, 6), snr=0.5, raw=1.5, rank=2, fragile=False, content="ab"),
    UP: Record(UP, "mlp.up_proj", (6, 4), snr=float("inf"), raw=float("inf"), noise=0.0, dialect="laserrmt"),
}


def strict(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))


def test_ours(tmp_path):
    write_records(RECORDS, tmp_path / "snr.json")
    content = strict(tmp_path / "snr.json")
    assert content[DOWN]["snr"] == 0.5 and content[DOWN]["type"] == "mlp.down_proj"
    assert content[UP]["snr"] is None
    assert read_records(tmp_path / "snr.json") == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["snr.json"]


def test_spectrums(tmp_path):
    write_spectrum_scan(RECORDS, tmp_path / "out.json")
    assert strict(tmp_path / "out.json") == {
        DOWN: {"snr": 0.5, "type": "mlp.down_proj"},
        UP: {"snr": sys.float_info.max, "type": "mlp.up_proj"},
    }
    assert read_records(tmp_path / "out.json")[UP].snr == float("inf")


def test_both_published_schemas(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({DOWN: {"snr": 3, "type": "mlp.down_proj"}}))
    assert read_records(path) == {DOWN: Record(DOWN, "mlp.down_proj", snr=3.0)}
    path.write_text(json.dumps({"mlp.down_proj": {DOWN: 3.0}, "mlp.up_proj": {UP: 2.5}}))
    assert read_records(path) == {
        DOWN: Record(DOWN, "mlp.down_proj", snr=3.0),
        UP: Record(UP, "mlp.up_proj", snr=2.5),
    }


def test_the_published_mistral_scan(data_dir):
    records = read_records(data_dir / "snr" / "snr_results_mistralai-Mistral-7B-v0.1.json")
    types = [record.type for record in records.values()]
    assert len(records) == 224 and {kind: types.count(kind) for kind in types} == dict.fromkeys(types, 32)
    assert {record.layer for record in records.values()} == set(range(32))


def test_nan_of_a_published_scan_is_no_score(tmp_path):
    (tmp_path / "x.json").write_text(
        f'{{"{DOWN}": {{"snr": NaN, "type": "t"}}, "{UP}": {{"snr": Infinity, "type": "t"}}}}'
    )
    records = read_records(tmp_path / "x.json")
    assert records[DOWN].snr is None and records[UP].snr == float("inf")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "{}",
        '{"a": 1}',
        '{"a": {}}',
        '{"a": {"b": "c"}}',
        '{"a": {"snr": "1", "type": "t"}}',
        '{"a": {"snr": 1, "type": "t"}, "b": {"c": 1}}',
        '{"a": {"snr": 1, "type": "t", "shape": 5}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_scan(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        read_records(tmp_path / "x.json")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"^compare: .*y\.json does not exist"):
        read_records(tmp_path / "y.json", "compare")


def test_target_modules(tmp_path):
    qkv = "model.layers.0.self_attn.qkv_proj"
    parts = [Record(f"{qkv}[{x}_proj]", f"self_attn.{x}_proj", holder=f"{qkv}.weight") for x in "qk"]
    records = {record.module: record for record in parts} | RECORDS
    write_target_modules([*(part.module for part in parts), DOWN], records, tmp_path / "t.json")
    assert strict(tmp_path / "t.json") == {"target_modules": [qkv, DOWN]}
    # a selection of a part must not widen to the whole
    with pytest.raises(UserError, match=r"qkv_proj\.weight is one tensor, and .*\[q_proj\] in it is not selected"):
        write_target_modules([parts[1].module, DOWN], records, tmp_path / "t.json")


def test_experts_and_routers_are_target_parameters(tmp_path):
    stack, router = "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight"
    records = {f"e{i}": Record(f"e{i}", "w2", holder=stack) for i in range(2)} | {"r": Record("r", "g", holder=router)}
    write_target_modules(["r", "e0", "e1"], records, tmp_path / "t.json")
    assert strict(tmp_path / "t.json") == {"target_modules": [], "target_parameters": [router, stack]}


def test_target_modules_are_those_that_peft_adapts(tmp_path, tiny_mistral):
    peft = pytest.importorskip("peft")
    # 12 layers: `layers.1` must not take `layers.11` along
    names = ["model.layers.1.mlp.up_proj", "model.layers.10.self_attn.q_proj"]
    write_target_modules(names, {name: Record(name, "") for name in names}, tmp_path / "t.json")
    lora = peft.get_peft_model(tiny_mistral(layers=12), peft.LoraConfig(r=2, **strict(tmp_path / "t.json")))
    adapted = {
        n.removeprefix("base_model.model.").split(".lora_")[0] for n, _ in lora.named_parameters() if "lora_" in n
    }
    assert adapted == set(names)


def test_match_gives_order_and_shapes():
    listing = {m: Record(m, RECORDS[m].type, RECORDS[m].shape) for m in (UP, DOWN)}
    published = {m: Record(m, RECORDS[m].type, snr=1.0) for m in (DOWN, UP)}
    published["lm_head"] = Record("lm_head", "lm_head", snr=2.0)  # Spectrum scans it where it is asked to
    found = match_records(published, listing, "x.json")
    assert list(found) == [UP, DOWN]
    assert found[UP] == Record(UP, "mlp.up_proj", (6, 4), snr=1.0)


def test_match_refuses_the_scan_of_another_model():
    listing = {m: Record(m, "t", (4, 6)) for m in (UP, DOWN)}
    with pytest.raises(UserError, match=rf"{DOWN} is not in x\.json"):
        match_records({UP: listing[UP]}, listing, "x.json")
    with pytest.raises(UserError, match=rf"{UP} is not in the model"):
        match_records(listing, {DOWN: listing[DOWN]}, "x.json")
    with pytest.raises(UserError, match=r"as \(9, 9\), the model as \(4, 6\)"):
        match_records(listing | {UP: Record(UP, "t", (9, 9))}, listing, "x.json")


def test_an_infinite_margin_comes_back(tmp_path):
    """A matrix of zeros has threshold 0, which no value is near, and a finite score."""
    zero = Record(UP, "mlp.up_proj", (6, 4), snr=0.0, threshold=0.0, noise=0.0, margin=float("inf"))
    write_records({UP: zero}, tmp_path / "snr.json")
    assert read_records(tmp_path / "snr.json") == {UP: zero}


def test_fill_gives_order_shapes_and_holders():
    listing = {m: Record(m, RECORDS[m].type, RECORDS[m].shape, holder=f"{m}s") for m in (UP, DOWN)}
    other = {m: Record(m, "t", snr=1.0) for m in ("model.layers.7.x", DOWN, UP)}
    found = fill(other, listing)
    assert list(found) == [UP, DOWN, "model.layers.7.x"]
    assert found[UP] == Record(UP, "mlp.up_proj", (6, 4), snr=1.0, holder=f"{UP}s")
