"""The card of an exported model: what the hub's own code reads from it, and that it says no more than is known."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from starling_train.config.sections import LoraConfig, ModelConfig
from starling_train.report.card import metadata, model_card
from starling_train.run.saved import SavedRun
from starling_train.run.state import TrainState
from starling_train.selection.freeze import FreezeTable, TableRow

SETTINGS = {
    "name": "mine",
    "seed": 3,
    "model": {"path": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": None},
    "freeze": {"method": "snr", "top_percent": 50.0, "scan": "/home/me/scan.json"},
    "reward": {"kind": "starling_7b", "path": "berkeley-nest/Starling-RM-7B-alpha", "url": "http://me:hunter2@host"},
    "data": {"path": "berkeley-nest/Nectar"},
    "algorithm": {"name": "rloo", "steps": 40},
    "optim": {"learning_rate": 1e-5},
    "evaluation": {"function_calling": {"path": "/home/me/bfcl"}},
}
METRICS = [
    {"step": 0, "eval/score_mean": -0.5, "eval/function_calling": 90.0, "eval/unscored": 0},
    {"step": 10, "eval/score_mean": 0.25, "eval/function_calling": 80.0, "eval/unscored": 0},
    {"step": 20, "eval/score_mean": 1.25, "eval/function_calling": 85.0, "eval/unscored": 0},
    {"step": 30, "eval/score_mean": 9.0},
]
SAMPLES = [
    {"step": step, "prompt": f"Question {i}?", "response": f"answer {i} of step {step} ```x```", "score": float(step)}
    for step in (0, 20, 30)
    for i in range(5)
]


def write_run(path: Path, settings: dict, metrics: list = METRICS, samples: list = SAMPLES) -> SavedRun:
    """The files of a run that the card reads, and its checkpoint of step 20."""
    for name, rows in (("metrics", metrics), ("samples", samples)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return SavedRun(path, settings, path / "checkpoints" / "step_000020", TrainState(step=20, episodes=1280))


def card_of(path: Path, settings: dict = SETTINGS, kind: str | None = None, base: str = "", **files: list) -> str:
    """The card of a policy, or of a reward model of a kind. base: what the base model's own card says."""
    (path / "base").mkdir()
    if base:
        (path / "base" / "README.md").write_text(base)
    what = "the reward model" if kind else "the policy"
    model = ModelConfig(path=settings["model"]["path"], dtype="bfloat16")
    trained = SimpleNamespace(directory=path / "base", what=what, kind=kind, model=model, lora=None)
    table = FreezeTable((TableRow("mlp.up_proj", 1, 2, 100, 200),), ("model.layers.0.mlp.up_proj.weight",), 0)
    return model_card.render(write_run(path, settings, **files), trained, table, SimpleNamespace(sha256="5ha"))


def test_the_hub_reads_base_model_data_licence_tags_and_results(tmp_path):
    text = card_of(tmp_path, base="---\nlicense: other\nlicense_name: smol\nlicense_link: LICENSE\n---\n# SmolLM2\n")
    card = ModelCard(text)  # raises for metadata that it cannot read
    data = card.data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and data.get("base_model_relation") == "finetune"
    assert data.datasets == ["berkeley-nest/Nectar"]
    for name in (data.base_model, *data.datasets):
        validate_repo_id(name)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert (data.license, data.license_name, data.license_link) == ("other", "smol", "LICENSE")
    assert data.tags == ["starling_train", "rloo", "conversational", "freeze-snr"]
    assert data.model_name == "mine"
    results = {one.metric_type: (one.metric_value, one.dataset_type, one.dataset_name) for one in data.eval_results}
    assert results == {  # of step 20, not of 30, and no count
        "score_mean": (1.25, "berkeley-nest/Nectar", "held out from Nectar"),
        "function_calling": (85.0, "bfcl", "bfcl"),
    }
    assert str(card) == text == str(ModelCard(text)) and text.startswith("---\n") and text.endswith("\n")
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["task"] == {"type": "text-generation"}


def test_people_read_selection_settings_samples_and_limits_and_no_path_of_the_machine(tmp_path):
    text = card_of(tmp_path)
    assert "| `eval/score_mean` | -0.5 | 1.25 |" in text and "top_percent: 50.0" in text and "seed: 3" in text
    assert "`berkeley-nest/Starling-RM-7B-alpha` (`starling_7b`)" in text and "`freeze.method=snr`" in text
    assert "1 tensors with 100 of 200 parameters (50.0%)" in text
    samples = text[text.index("## Samples") : text.index("## How to use it")]
    for i in range(3):
        assert samples.index(f"answer {i} of step 0") < samples.index(f"answer {i} of step 20")
    assert "Question 3?" not in samples and "step 30" not in samples and "Step 20, score 20:" in samples
    assert samples.count("\n````text\n") == 6 and samples.count("\n```text\n") == 3  # longer than the fence inside
    assert "the reward model that training maximised" in text and "no judgement of people" in text
    assert "Whether a skill of the base model was lost" not in text
    assert "Not known: see those of the base model" in text
    assert "/home/me" not in text and "hunter2" not in text and ModelCard(text).data.license is None


def test_what_is_not_known_is_not_said(tmp_path):
    own = SETTINGS | {"model": {"path": str(tmp_path / "base")}, "data": {"path": "rows.jsonl"}}
    text = card_of(tmp_path, own, metrics=[{"step": 1, "policy/loss": 1.0}], samples=[], base="no metadata here")
    data = ModelCard(text).data
    assert (data.base_model, data.datasets, data.license, data.eval_results) == (None, None, None, None)
    assert "It has made no evaluation" in text.replace("it has", "It has") and "## Samples" not in text
    assert "whether training helped is not known" in text


@pytest.mark.parametrize(
    ("kind", "library", "pipeline"),
    [("starling_7b", "starling_train", None), ("sequence_classification", "transformers", "text-classification")],
)
def test_the_card_of_a_reward_model(tmp_path, kind, library, pipeline):
    settings = {key: value for key, value in SETTINGS.items() if key not in ("algorithm", "reward")}
    metrics = [{"step": 20, "eval/preference_accuracy": 0.75}]
    text = card_of(tmp_path, settings | {"rm": {"max_length": 64}}, kind, metrics=metrics, samples=[])
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == (library, pipeline)
    assert data.tags == ["starling_train", "rm", "reward-model", "freeze-snr"]
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "text-classification", "preference_accuracy", 0.75,
    )  # fmt: skip
    assert "Accuracy is that on held-out rows" in text and "max_length: 64" in text


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("org/model", "org/model"),
        ("/root/.cache/huggingface/hub/models--org--my.model-7b/snapshots/0123abc", "org/my.model-7b"),
        ("/cache/datasets--org--rows/snapshots/0123abc/data", "org/rows"),
        ("./org/model", None),
        ("~/model", None),
        ("/models/mine", None),
        ("gpt2", None),
        ("a/b/c", None),
        ("org/-wrong..name", None),
        ("", None),
    ],
)
def test_a_name_on_the_hub_is_told_from_a_directory(path, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert metadata.hub_id(path) == known
    if known == path:
        (tmp_path / "org" / "model").mkdir(parents=True)
        assert metadata.hub_id(path) is None


@pytest.mark.parametrize(
    "content", ["", "# no metadata", "---\nlicense: [1\n---\n", "---\n- 1\n---\n", "---\nlicense: 3\n---\n", "\xff\x00"]
)
def test_a_base_whose_card_says_no_licence(tmp_path, content):
    assert metadata.licence(tmp_path) == {}
    (tmp_path / "README.md").write_text(content, encoding="latin-1")
    assert metadata.licence(tmp_path) == {}


def test_adapters_are_a_tag(tmp_path):
    run = write_run(tmp_path, SETTINGS | {"dpo": {}})
    trained = SimpleNamespace(directory=tmp_path, kind=None, model=ModelConfig(path="org/model"), lora=LoraConfig())
    assert metadata.card_data(run, trained, "mine", None).tags == [
        "starling_train", "dpo", "conversational", "lora", "freeze-snr",
    ]  # fmt: skip
