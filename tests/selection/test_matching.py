"""Scans that others published, beside models of their layout: which names are read, passed over, and refused."""

import json
import math
import shutil
from functools import cache

import pytest
from model_directories import list_matrices, select_by, source
from transformers import AutoConfig

from starling_train.config.fields import UserError
from starling_train.config.sections import FreezeConfig
from starling_train.models.source import ModelSource
from starling_train.selection import listing, scans
from starling_train.selection.matching import fill, match, plain_name
from starling_train.selection.records import Record, read_records
from starling_train.selection.scan_file import find_scan, slug_of

LAYERS = {"num_hidden_layers": 32, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 99}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MISTRAL = {"model_type": "mistral", **LAYERS, **HEADS}
LLAMA = {"model_type": "llama", **LAYERS, **HEADS}
PHI3 = {"model_type": "phi3", **LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0}
TINY = {**MISTRAL, "num_hidden_layers": 2}
SEVEN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """A function that writes a model directory of a config.json alone and opens it."""

    def write(config: dict, name: str = "model") -> ModelSource:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return source(tmp_path / name)

    return write


@cache
def _scan(layers: int = 2, **more) -> dict[str, Record]:
    names = [f"model.layers.{i}.{kind}" for kind in SEVEN for i in range(layers)]
    return {name: Record(name, name.split(".", 3)[3], snr=float(n)) for n, name in enumerate(names)}


def of_names(*names: str) -> dict[str, Record]:
    return {name: Record(name, "x", snr=math.inf) for name in names}


def match_with(opened: ModelSource, scan: dict[str, Record]):
    return match(scan, list_matrices(opened.directory), "x.json", lambda: listing.names(opened))


def published(path) -> dict[str, dict[str, float]]:
    """Type -> module -> score, read with nothing of ours."""
    content = json.loads(path.read_text())
    types: dict[str, dict[str, float]] = {}
    for key, values in content.items():
        if "snr" in values:
            types.setdefault(values["type"], {})[key] = values["snr"]
        else:
            types[key] = values
    return types


def top(scores: dict[str, float], percent: float) -> set[str]:
    """Spectrum's rule: `int(n * percent / 100)` of a type's modules, highest first."""
    ordered = sorted(scores, key=scores.__getitem__, reverse=True)
    return set(ordered[: int(len(ordered) * percent / 100)])


PUBLISHED = [
    ("mistralai-Mistral-7B-v0.2", MISTRAL, 67),
    ("meta-llama-Meta-Llama-3.1-8B-Instruct", LLAMA, 67),
    ("microsoft-Phi-3-mini-4k-instruct", PHI3, 0),
]


@pytest.mark.parametrize(("name", "config", "passed_over"), PUBLISHED)
def test_published_scans_select_what_spectrum_selects(data_dir, model, capsys, name, config, passed_over):
    """Norms, head and embeddings are passed over; a fused tensor is ranked by its own score."""
    file = data_dir / "snr" / "published" / f"snr_results_{name}.json"
    opened = model(config)
    records = scans.read_scan(FreezeConfig(scan=str(file)), opened)
    line = capsys.readouterr().out
    assert len(line.splitlines()) == 1
    chosen = {records[module].parameter for module in select_by(records, top_percent=25)}
    expected = set()
    for kind, scores in published(file).items():
        if kind.startswith(("mlp.", "self_attn.")):
            expected |= {f"{module}.weight" for module in top(scores, 25)}
    assert chosen == expected and len(expected) == 8 * (4 if config is PHI3 else 7)
    if passed_over:
        assert "input_layernorm (32), post_attention_layernorm (32), lm_head (1)" in line
        assert "model.embed_tokens (1), model.norm (1)" in line
    else:
        assert "one score for all matrices of a tensor: " in line
        assert "self_attn.qkv_proj (32)" in line and "mlp.gate_up_proj (32)" in line


def test_a_fused_score_stands_for_its_tensor_in_every_form_of_selection(model):
    opened = model({**PHI3, "num_hidden_layers": 2})
    kinds = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    # layer 1 is the better one for qkv_proj alone
    scan = {f"model.layers.{i}.{kind}": (i if kind == kinds[0] else 1 - i) for kind in kinds for i in (0, 1)}
    matched = match_with(opened, {name: Record(name, "t", snr=float(score)) for name, score in scan.items()})
    parts = [f"model.layers.1.self_attn.qkv_proj[{x}_proj]" for x in "qkv"]
    assert [matched.records[part].snr for part in parts] == [1.0, 1.0, 1.0]
    assert [matched.records[part].type for part in parts] == [f"self_attn.{x}_proj" for x in "qkv"]
    selected = select_by(matched.records, top_percent=50)
    assert set(parts) < set(selected) and not any("layers.0" in name and "qkv" in name for name in selected)
    assert matched.fused == {"self_attn.qkv_proj": 2, "mlp.gate_up_proj": 2}
    # by layer: three of four tensors, five of seven matrices, are better in layer 0
    by_layer = select_by(matched.records, top_percent=50, unit="layer")
    assert {matched.records[name].layer for name in by_layer} == {0}


def test_scores_of_the_parts_come_before_that_of_their_tensor(model):
    opened = model({**PHI3, "num_hidden_layers": 1})
    ours = {m: Record(m, r.type, r.shape, snr=2.0) for m, r in list_matrices(opened.directory).items()}
    both = ours | of_names("model.layers.0.self_attn.qkv_proj")
    matched = match_with(opened, both)
    assert {record.snr for record in matched.records.values()} == {2.0}
    assert matched.passed_over == {"self_attn.qkv_proj": 1} and not matched.fused


@pytest.mark.parametrize(
    ("more", "passed_over"),
    [
        (of_names("lm_head", "model.embed_tokens", "model.norm"), 3),
        (of_names("lm_head.weight", "model.layers.1.input_layernorm.weight"), 2),
        # a buffer of the model, and those that every layer had before transformers 5
        (of_names("model.rotary_emb.inv_freq", "model.rotary_emb"), 2),
        (of_names("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb"), 2),
        (of_names("_orig_mod.model.layers.1.post_attention_layernorm", "_orig_mod.lm_head"), 2),
        (of_names("score", "v_head.summary"), 2),
    ],
)
def test_what_the_model_has_besides_its_matrices_is_passed_over(model, more, passed_over):
    matched = match_with(model(TINY), _scan() | more)
    assert {m: r.snr for m, r in matched.records.items()} == {m: r.snr for m, r in _scan().items()}
    assert sum(matched.passed_over.values()) == passed_over
    assert len(matched.notes()) == 1


def test_biases_are_passed_over_where_the_model_has_them(model):
    bias = of_names("model.layers.0.self_attn.q_proj.bias")
    qwen = {**TINY, "model_type": "qwen2"}
    assert match_with(model(qwen), _scan() | bias).passed_over == {"self_attn.q_proj.bias": 1}
    with pytest.raises(UserError, match=r"q_proj\.bias is not in the model"):
        match_with(model(TINY, "other"), _scan() | bias)


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (_scan(3), r"layers\.2\.self_attn\.q_proj and 6 more are not in the model .*7 of 21 names; "
                   r"its highest layer is 2, the model's 1\); give the scan of this model"),
        (_scan() | of_names("model.layers.7.input_layernorm"), r"7\.input_layernorm is not in the model .*1 of 15"),
        (_scan() | of_names("model.layers.9.self_attn.rotary_emb"), r"rotary_emb is not in the model"),
        (_scan() | of_names("model.layers.0.self_attn.qkv_proj"), r"qkv_proj is not in the model"),
        (_scan() | of_names("model.layers.0.mlp.experts.3.down_proj"), r"experts\.3\.down_proj is not in the model"),
        (_scan() | of_names("encoder.block.0.layer.0.SelfAttention.q"), r"SelfAttention\.q is not in the model"),
        (_scan(1), r"model\.layers\.1\.self_attn\.q_proj and 6 more are not in x\.json .*7 of the model's 14"),
        (of_names("lm_head", "model.norm"), r"and 13 more are not in x\.json .*14 of the model's 14"),
    ],
)  # fmt: skip
def test_the_scan_of_another_model_is_refused_in_one_line(model, scan, words):
    with pytest.raises(UserError, match=words) as error:
        match_with(model(TINY), scan)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "base_model.model._orig_mod."]
)
def test_names_with_a_wrappers_prefix_are_the_models(model, prefix):
    wrapped = {f"{prefix}{name}": Record(f"{prefix}{name}", r.type, snr=r.snr) for name, r in _scan().items()}
    matched = match_with(model(TINY), wrapped)
    assert {m: r.snr for m, r in matched.records.items()} == {m: r.snr for m, r in _scan().items()}
    assert matched.renamed == 14 and matched.notes() == ["read without the prefix of their names: 14"]


def test_names_of_another_decoder_prefix_and_inner_wrappers(model):
    """A bare decoder's names, a reward model's, and what FSDP and checkpointing put in between."""
    opened = model(TINY)
    for write in (
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("model.", "transformer.", 1),
        lambda name: name.replace("model.layers", "model.language_model.layers"),
        lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda name: f"{name}.weight",
    ):
        scan = {write(name): Record(write(name), r.type, snr=r.snr) for name, r in _scan().items()}
        matched = match_with(opened, scan)
        assert {m: r.snr for m, r in matched.records.items()} == {m: r.snr for m, r in _scan().items()}
    assert plain_name("module._orig_mod.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight") == (
        "model.layers.0.mlp.up_proj"
    )


def test_types_that_were_not_scanned_stay_frozen(model):
    """Spectrum asks which types to scan; what it did not score it does not unfreeze."""
    attention = {name: record for name, record in _scan(4).items() if "self_attn" in name}
    opened = model({**TINY, "num_hidden_layers": 4})
    matched = match_with(opened, attention)
    assert matched.unscored == {"mlp.gate_proj": 4, "mlp.up_proj": 4, "mlp.down_proj": 4}
    assert matched.notes() == [
        "no score, so not selected by one: mlp.gate_proj (4), mlp.up_proj (4), mlp.down_proj (4)"
    ]
    selected = select_by(matched.records, top_percent=25)
    assert selected == [f"model.layers.3.{kind}" for kind in SEVEN[:4]]
    assert select_by(matched.records, top_percent=25, method="lowest") == [
        f"model.layers.0.{kind}" for kind in SEVEN[:4]
    ]
    # a whole layer is whole
    assert select_by(matched.records, top_percent=25, unit="layer") == [f"model.layers.3.{kind}" for kind in SEVEN]


def test_nan_of_a_whole_type_is_a_type_not_scanned_and_of_a_part_an_error(model):
    opened = model(TINY)
    nan = {n: (Record(n, r.type) if "down_proj" in n else r) for n, r in _scan().items()}
    matched = match_with(opened, nan)
    assert matched.unscored == {"mlp.down_proj": 2}
    assert len(select_by(matched.records, top_percent=50)) == 6
    one = "model.layers.0.mlp.up_proj"
    with pytest.raises(UserError, match=r"up_proj has no SNR"):
        select_by(match_with(opened, _scan() | {one: Record(one, "x")}).records, top_percent=50)
    with pytest.raises(UserError, match="has no SNR"):
        select_by(match_with(opened, {n: Record(n, r.type) for n, r in _scan().items()}).records, top_percent=50)


MOE = {
    "mixtral": (
        "block_sparse_moe.gate", *(f"block_sparse_moe.experts.{e}.w{i}" for e in (0, 1) for i in (1, 2, 3)),
    ),
    "qwen2_moe": (
        "mlp.gate", "mlp.shared_expert_gate", *(f"mlp.shared_expert.{x}_proj" for x in ("gate", "up", "down")),
        *(f"mlp.experts.{e}.{x}_proj" for e in (0, 1) for x in ("gate", "up", "down")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MOE)
def test_experts_as_spectrum_names_them(model, kind):
    """Its type of an expert has the expert's number, and its `mlp.gate` also finds every `gate_proj`."""
    config = {
        **TINY, "model_type": kind, "num_local_experts": 2, "num_experts": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48, "decoder_sparse_step": 1,
    }  # fmt: skip
    names = [f"model.layers.{i}.{name}" for i in (0, 1) for name in (*SEVEN[:4], *MOE[kind])]
    scan = {n: Record(n, "mlp.gate" if "gate" in n else n.split(".", 3)[3], snr=float("layers.1" in n)) for n in names}
    matched = match_with(model(config), scan)
    assert matched.passed_over == ({"mlp.shared_expert_gate": 2} if kind == "qwen2_moe" else {})
    assert not matched.unscored and not matched.fused
    assert {record.type for record in matched.records.values()} == {
        record.type for record in list_matrices(model(config).directory).values()
    }
    selected = select_by(matched.records, top_percent=50)
    assert {matched.records[name].layer for name in selected} == {1}
    assert len(selected) == len(matched.records) / 2


def test_experts_that_a_scan_leaves_out(model):
    """The published scan of gpt-oss has the router and no expert: they are parameters without a module."""
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 99,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "head_dim": 16,
        "layer_types": ["full_attention", "full_attention"],
    }  # fmt: skip
    kinds = (*SEVEN[:4], "mlp.router", "input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{i}.{kind}" for i in (0, 1) for kind in kinds]
    scan = {
        n: Record(n, "t", snr=float("layers.1" in n)) for n in (*names, "lm_head", "model.norm", "model.embed_tokens")
    }
    matched = match_with(model(config), scan)
    assert all("experts" in kind for kind in matched.unscored) and matched.unscored
    selected = select_by(matched.records, top_percent=50)
    assert [name.split(".", 3)[3] for name in selected] == [*SEVEN[:4], "mlp.router"]


# What else is in files, and in strings instead of numbers

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("score", "read"),
    [("NaN", None), ('"NaN"', None), ('"nan"', None), ("null", None), ("Infinity", math.inf), ('"Infinity"', math.inf),
     ('"inf"', math.inf), ("-Infinity", -math.inf), ("1e400", math.inf), ("3", 3.0), ("0", 0.0)],
)  # fmt: skip
@pytest.mark.parametrize(
    "form", ['{{"{up}": {{"snr": {score}, "type": "mlp.up_proj"}}}}', '{{"mlp.up_proj": {{"{up}": {score}}}}}']
)
def test_scores_that_are_not_finite_numbers(tmp_path, score, read, form):
    (tmp_path / "x.json").write_text(form.format(up=UP, score=score))
    assert read_records(tmp_path / "x.json")[UP].snr == read


def test_a_missing_type_is_that_of_the_name(tmp_path):
    names = [UP, "model.layers.3.mlp.experts.11.down_proj", "lm_head", "model.layers.0.self_attn.qkv_proj[q_proj]"]
    (tmp_path / "x.json").write_text(json.dumps({name: {"snr": 1.0} for name in names}))
    types = [record.type for record in read_records(tmp_path / "x.json").values()]
    assert types == ["mlp.up_proj", "mlp.experts.down_proj", "lm_head", "self_attn.q_proj"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("unfrozen.yaml", f"unfrozen_parameters:\n- ^lm_head.weight$\n- {UP}\n", r"is YAML, as lists of unfrozen"),
        ("x.json", f"unfrozen_parameters:\n- {UP}\n", r"not JSON"),
        ("x.json", json.dumps({"target_modules": [UP]}), r"not an SNR scan"),
        ("x.json", json.dumps({UP: 1.0}), r"not an SNR scan"),
        ("x.json", json.dumps({UP: {"snr": "high", "type": "t"}}), rf"{UP} has .*'high'"),
        ("x.json", json.dumps({UP: {"snr": 1}, DOWN: {"type": "t"}}), rf"{DOWN} has "),
        ("x.json", json.dumps({UP: {"snr": True}}), rf"{UP} has "),
        ("x.json", json.dumps({UP: {"snr": [1.0]}}), rf"{UP} has "),
        ("x.json", json.dumps({"mlp.up_proj": {UP: "1.5"}}), rf"{UP} has .*'1\.5'"),
    ],
)
def test_other_files_given_by_mistake(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_records(tmp_path / name)
    assert "\n" not in str(error.value)


# Directories


def scan_at(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({UP: {"snr": 1.0, "type": "t"}}))
    return path


def test_a_file_is_found_in_a_directory_by_the_models_name(tmp_path):
    def opened(path: str, directory: str = "m") -> ModelSource:
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        return ModelSource(tmp_path / directory, "model.path", path)

    assert slug_of(opened("org/my_model-v0.1")) == "org-my-model-v0.1"
    assert slug_of(source(opened("", "my_local_model").directory)) == "my-local-model"
    cached = opened("", "hub/models--org--my_model/snapshots/0a1b")
    assert slug_of(source(cached.directory)) == "org-my-model"
    folder = tmp_path / "scans"
    repository = scan_at(folder / "model_snr_results" / "snr_results_org-my-model.json")
    assert find_scan(folder, "org-my-model") == repository
    assert find_scan(folder, "my-model") == repository  # a local copy has no organisation in its name
    assert find_scan(folder, "MY-Model") == repository
    scan_at(folder / "model_snr_results" / "snr_results_other-my-model.json")
    with pytest.raises(UserError, match=r"several scans of my-model: .*give the file"):
        find_scan(folder, "my-model")
    assert find_scan(folder, "org-my-model") == repository
    underlined = scan_at(folder / "snr_results_org_other_model.json")
    assert find_scan(folder, "org-other-model") == underlined
    with pytest.raises(UserError, match=r"^compare: .* nor snr_results_none\.json \(3 others, .*give the file"):
        find_scan(folder, "none", "compare")
    own = scan_at(folder / "snr.json")
    assert find_scan(folder, "org-my-model") == own


def test_a_file_is_found_under_spectrums_spelling(tmp_path):
    there = scan_at(tmp_path / "snr_results_org-my-model.json")
    assert find_scan(tmp_path / "snr_results_org_my_model.json", "x") == there
    assert find_scan(tmp_path / "snr_results_none.json", "x") == tmp_path / "snr_results_none.json"


def test_a_plan_looks_by_the_name_of_a_model_that_is_not_here(tmp_path, capsys):
    """Of a known model's shape alone; a reward model's names differ from the scan's in their prefix only. Told once."""
    from starling_train.models.causal_lm import build_empty
    from starling_train.planning.what_trains import what_trains_in
    from starling_train.selection.scan_file import slug_of_path

    assert slug_of_path("org/my_model") == "org-my-model" and slug_of_path(tmp_path) == tmp_path.name.replace("_", "-")
    scores = {name: {"snr": record.snr, "type": record.type} for name, record in _scan().items()}
    file = tmp_path / "model_snr_results" / "snr_results_org-my-model.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**scores, "model.norm": {"snr": 1.0, "type": "model.norm"}}))
    config = AutoConfig.for_model(**TINY)
    settings = FreezeConfig(scan=str(tmp_path), top_percent=50)
    for _ in range(2):
        table = what_trains_in(settings, build_empty(config), 0, "org/my_model")
        assert table.names == tuple(f"model.layers.1.{kind}.weight" for kind in SEVEN)
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(UserError, match=r"neither snr\.json nor snr_results_org-other\.json \(1 others"):
        what_trains_in(settings, build_empty(config), 0, "org/other")


def test_sorted_files_serve_where_there_is_no_other(tmp_path):
    there = scan_at(tmp_path / "snr_results_org-m_sorted.json")
    assert find_scan(tmp_path, "org-m") == there
    plain = scan_at(tmp_path / "snr_results_org-m.json")
    assert find_scan(tmp_path, "org-m") == plain


# Compared, and written


def test_a_scan_to_compare_with_may_be_of_another_model_but_not_of_norms(model):
    opened = model(TINY)
    other = _scan(3) | of_names("model.layers.0.input_layernorm", "lm_head")
    filled = fill(other, list_matrices(opened.directory), lambda: listing.names(opened))
    assert list(filled)[:14] == list(list_matrices(opened.directory))
    assert len(filled) == 21 and all(record.layer == 2 for record in list(filled.values())[14:])


def test_every_dialect_of_ours_is_read_back(model):
    """No note for a scan of the model's own matrices, whatever its dialect."""
    opened = model(TINY)
    for dialect in ("spectrum", "laserrmt", "gavish_donoho"):
        ours = {
            m: Record(m, r.type, r.shape, snr=1.0, dialect=dialect) for m, r in list_matrices(opened.directory).items()
        }
        matched = match_with(opened, ours)
        assert matched.records == ours and matched.notes() == []


def test_published_scans_through_the_command(run_command, data_dir, tmp_path, tiny_mistral):
    """`snr` with a directory of published scans: one line of what is passed over, the files, axolotl's patterns."""
    tiny_mistral(layers=32).save_pretrained(tmp_path / "Mistral_7B_v0.2")
    shutil.copytree(data_dir / "snr" / "published", tmp_path / "published")
    done = run_command("snr", "model.path=Mistral_7B_v0.2", "freeze.scan=published", "run_dir=out")
    assert done.returncode == 0, done.stderr
    assert "passed over, not matrices of the layers: input_layernorm (32)" in done.stdout
    assert "selected: 56 of 224 matrices" in done.stdout
    assert (tmp_path / "out" / "snr_results_Mistral-7B-v0.2.json").is_file()
    dry = run_command(
        "snr",
        "model.path=Mistral_7B_v0.2",
        "freeze.scan=published/snr_results_microsoft-Phi-3-mini-4k-instruct.json",
        "dry_run=true",
    )
    assert dry.returncode == 2 and "gate_up_proj and 63 more are not in the model" in dry.stderr
