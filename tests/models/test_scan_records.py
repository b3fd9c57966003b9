"""Files of a scan: ours, the two published schemas, strict JSON, and what is refused."""

import json

import pytest

from starling_train.config import UserError
from starling_train.models.scan_records import (
    Record,
    match,
    read_scan,
    write_scan,
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
    write_scan(RECORDS, tmp_path / "snr.json")
    content = strict(tmp_path / "snr.json")
    assert content[DOWN]["snr"] == 0.5 and content[DOWN]["type"] == "mlp.down_proj"
    assert content[UP]["snr"] is None
    assert read_scan(tmp_path / "snr.json") == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["snr.json"]


def test_spectrums(tmp_path):
    write_spectrum_scan(RECORDS, tmp_path / "out.json")
    assert strict(tmp_path / "out.json") == {
        DOWN: {"snr": 0.5, "type": "mlp.down_proj"},
        UP: {"snr": None, "type": "mlp.up_proj"},
    }


def test_both_published_schemas(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({DOWN: {"snr": 3, "type": "mlp.down_proj"}}))
    assert read_scan(path) == {DOWN: Record(DOWN, "mlp.down_proj", snr=3.0)}
    path.write_text(json.dumps({"mlp.down_proj": {DOWN: 3.0}, "mlp.up_proj": {UP: 2.5}}))
    assert read_scan(path) == {
        DOWN: Record(DOWN, "mlp.down_proj", snr=3.0),
        UP: Record(UP, "mlp.up_proj", snr=2.5),
    }


def test_the_published_mistral_scan(data_dir):
    records = read_scan(data_dir / "snr" / "snr_results_mistralai-Mistral-7B-v0.1.json")
    types = [record.type for record in records.values()]
    assert len(records) == 224 and {kind: types.count(kind) for kind in types} == dict.fromkeys(types, 32)
    assert {record.layer for record in records.values()} == set(range(32))


def test_nan_of_a_published_scan_is_no_score(tmp_path):
    (tmp_path / "x.json").write_text(
        f'{{"{DOWN}": {{"snr": NaN, "type": "t"}}, "{UP}": {{"snr": Infinity, "type": "t"}}}}'
    )
    records = read_scan(tmp_path / "x.json")
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
    ],
)
def test_what_is_no_scan(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        read_scan(tmp_path / "x.json")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"^compare: .*y\.json does not exist"):
        read_scan(tmp_path / "y.json", "compare")


def test_target_modules(tmp_path):
    qkv = "model.layers.0.self_attn.qkv_proj"
    write_target_modules([f"{qkv}[q_proj]", f"{qkv}[k_proj]", DOWN], tmp_path / "t.json")
    assert strict(tmp_path / "t.json") == {"target_modules": [qkv, DOWN]}


def test_target_modules_are_those_that_peft_adapts(tmp_path, tiny_mistral):
    peft = pytest.importorskip("peft")
    # 12 layers: `layers.1` must not take `layers.11` along
    names = ["model.layers.1.mlp.up_proj", "model.layers.10.self_attn.q_proj"]
    write_target_modules(names, tmp_path / "t.json")
    lora = peft.get_peft_model(tiny_mistral(layers=12), peft.LoraConfig(r=2, **strict(tmp_path / "t.json")))
    adapted = {
        n.removeprefix("base_model.model.").split(".lora_")[0] for n, _ in lora.named_parameters() if "lora_" in n
    }
    assert adapted == set(names)


def test_match_gives_order_and_shapes():
    listing = {m: Record(m, RECORDS[m].type, RECORDS[m].shape) for m in (UP, DOWN)}
    published = {m: Record(m, RECORDS[m].type, snr=1.0) for m in (DOWN, UP)}
    published["lm_head"] = Record("lm_head", "lm_head", snr=2.0)  # Spectrum scans it where it is asked to
    found = match(published, listing, "x.json")
    assert list(found) == [UP, DOWN]
    assert found[UP] == Record(UP, "mlp.up_proj", (6, 4), snr=1.0)


def test_match_refuses_the_scan_of_another_model():
    listing = {m: Record(m, "t", (4, 6)) for m in (UP, DOWN)}
    with pytest.raises(UserError, match=rf"{DOWN} is not in x\.json"):
        match({UP: listing[UP]}, listing, "x.json")
    with pytest.raises(UserError, match=rf"{UP} is not in the model"):
        match(listing, {DOWN: listing[DOWN]}, "x.json")
    with pytest.raises(UserError, match=r"as \(9, 9\), the model as \(4, 6\)"):
        match(listing | {UP: Record(UP, "t", (9, 9))}, listing, "x.json")
