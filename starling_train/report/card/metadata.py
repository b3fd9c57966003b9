"""The metadata of a model card, which the hub reads: base model, data, licence, tags, results. Only what is known."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from starling_train.models.reward import classifier
from starling_train.report.read_run import is_number, setting
from starling_train.run.saved import SavedRun
from starling_train.training.trained import TrainedModel

IN_CACHE = re.compile(r"(?:models|datasets)--([\w.-]+?)--([\w.-]+)/snapshots/")
LICENSE = ("license", "license_name", "license_link")
OWN = "data.path"
BUILT_IN = ""  # prompts that come with the package
# what an evaluation other than that of held-out data reads, by the beginning of its metrics
PLACES = {
    "eval/function_calling": "evaluation.function_calling.path",
    "eval/instructions": BUILT_IN,
    "eval/perplexity": "evaluation.perplexity.path",
}
NOT_RESULTS = ("eval/unscored",)  # a count of what could not be measured


def card_data(run: SavedRun, trained: TrainedModel, name: str, measured: dict[str, Any] | None) -> ModelCardData:
    """Collect the metadata of the model of a run's checkpoint.

    run: the run.
    trained: the model that it trained.
    name: the run's.
    measured: the row of metrics.jsonl with the last evaluation up to the checkpoint; None before one.
    """
    is_transformers = trained.kind in (None, classifier.KIND)
    data = hub_id(str(setting(run.settings, "data.path") or ""))
    base, stated = hub_id(trained.model.path), licence(trained.directory)
    return ModelCardData(
        library_name="transformers" if is_transformers else "starling_train",
        pipeline_tag=("text-classification" if trained.kind else "text-generation") if is_transformers else None,
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=[data] if data else None,
        tags=_tags(run, trained),
        model_name=name,
        eval_results=list(_results(run, trained, measured or {}, data)) or None,
        license=stated.get("license"),
        license_name=stated.get("license_name"),
        license_link=stated.get("license_link"),
    )


def hub_id(path: str) -> str | None:
    """Return the hub's id of a model or data set that a setting names; None for a directory or file of one's own."""
    if cached := IN_CACHE.search(path):
        return "/".join(cached.groups())
    if path.count("/") != 1 or path.startswith((".", "~", "/")) or Path(path).exists():
        return None
    try:
        validate_repo_id(path)
    except HFValidationError:
        return None
    return path


def licence(base: Path) -> dict[str, str]:
    """Return the licence that the base model's own card states, as metadata; empty where it states none."""
    file = base / "README.md"
    if not file.is_file():
        return {}
    try:
        stated = ModelCard(file.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError):
        return {}
    known = {key: stated.get(key) for key in LICENSE}
    return {key: value for key, value in known.items() if isinstance(value, str)} if known["license"] else {}


def algorithm(run: SavedRun) -> str | None:
    """Return what trained the model: ppo, apa, rloo, grpo, dpo, or rm."""
    own = next((section for section in ("rm", "dpo") if section in run.settings), None)
    return own or setting(run.settings, "algorithm.name")


def _tags(run: SavedRun, trained: TrainedModel) -> list[str]:
    method = setting(run.settings, "freeze.method")
    tags = ["starling_train", algorithm(run), "reward-model" if trained.kind else "conversational", "lora"]
    kept = [tag for tag in tags if tag and (tag != "lora" or trained.lora)]
    return kept + ([f"freeze-{method}"] if method not in (None, "none") else [])


def _results(run: SavedRun, trained: TrainedModel, measured: dict[str, Any], data: str | None) -> Iterator[EvalResult]:
    """Yield every number of an evaluation: of function calling, of the perplexity's text, of held-out prompts."""
    texts = setting(run.settings, "evaluation.perplexity.texts") or {}
    places = {f"eval/perplexity_{text}": f"evaluation.perplexity.texts.{text}" for text in texts} | PLACES
    keys = {*places.values(), OWN} - {BUILT_IN}
    names = {key: Path(str(setting(run.settings, key) or "")).name or "not named" for key in keys}
    names[BUILT_IN] = "instructions of starling_train"
    for key, value in measured.items():
        if not key.startswith("eval/") or key in NOT_RESULTS or not is_number(value):
            continue
        place = next((place for start, place in places.items() if key.startswith(start)), OWN)
        yield EvalResult(
            task_type="text-classification" if trained.kind else "text-generation",
            dataset_type=(place == OWN and data) or names[place],
            dataset_name=f"held out from {names[OWN]}" if place == OWN else names[place],
            metric_type=key.removeprefix("eval/"),
            metric_value=value,
            metric_name=f"{key} at step {measured['step']}",
        )
