"""README.md of an exported model: what it is, what was trained, what the run measured. Only what the files say."""

import json
import re
from typing import Any

import yaml
from huggingface_hub import ModelCard

from starling_train import __version__
from starling_train.files.identity import Identity
from starling_train.models.reward import classifier
from starling_train.report import read_run
from starling_train.report.card.metadata import algorithm, card_data, licence
from starling_train.report.markup import clean, markdown_table, redact
from starling_train.report.read_run import judge_of, setting, terms_of
from starling_train.run.saved import SavedRun
from starling_train.selection.freeze import FreezeTable
from starling_train.training.trained import TrainedModel

USE_POLICY = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
messages = [{"role": "user", "content": "Hello"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=256)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
USE_REWARD = """```python
from starling_train.models.reward import load_reward_model

directory = "."  # where this file is
model = load_reward_model("{kind}", directory, dtype="{dtype}", max_length={max_length}{newline})
messages = [{{"role": "user", "content": "Hello"}}, {{"role": "assistant", "content": "Hello! How can I help you?"}}]
print(model.score([messages]))
```

In a run of `starling_train.ppo`: `reward={kind} reward.path=DIR reward.max_length={max_length}{key}`."""
USE_CLASSIFIER = """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

directory = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSequenceClassification.from_pretrained(directory, dtype="auto")
messages = [{{"role": "user", "content": "Hello"}}, {{"role": "assistant", "content": "Hello! How can I help you?"}}]
inputs = tokenizer.apply_chat_template([messages], return_tensors="pt", return_dict=True, padding=True)
with torch.no_grad():
    print(model(**inputs).logits[:, 0])
```

In a run of `starling_train.ppo`: `reward={kind} reward.path=DIR reward.max_length={max_length}`."""

SAMPLES, LONGEST_SAMPLE = 3, 2000  # how many, and characters of each
SECTIONS = ("algorithm", "dpo", "rm", "optim", "rollout", "freeze")


def render(run: SavedRun, trained: TrainedModel, table: FreezeTable, base: Identity) -> str:
    """Return the card of the model that `export` writes.

    run: the run.
    trained: the model that it trained.
    table: what trained in it.
    base: the base model's identity, which was compared with the checkpoint's.
    """
    settings = run.settings
    name = settings.get("name") or run.path.resolve().name
    files = read_run.read(run.path)
    evaluations = _evaluations(run, files)
    data = card_data(run, trained, name, evaluations[-1] if evaluations else None)
    parts = [
        f"# {name}, step {run.step}",
        f"{trained.what.capitalize()} of the run `{name}`, written by `starling_train` {__version__}.",
        markdown_table(("", ""), [*_origin(run, trained, base), *_training(settings, run)]),
        "## What was trained",
        _share(trained, table),
        _module_types(table),
        "## What the run measured",
        _measured(evaluations),
        *_samples(run, files, evaluations),
        "## How to use it",
        _use(settings, trained),
        "## Settings",
        _settings(settings),
        "## Limits",
        _limits(settings, trained, evaluations),
        "## Licence",
        _licence(trained),
    ]
    body = "\n\n".join(parts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def is_of(text: str, run: SavedRun, trained: TrainedModel, base: Identity) -> bool:
    """Return whether a card, edited perhaps, is of the model that this export would write."""
    lines = text.splitlines()
    return all(f"| {what} | {value} |" in lines for what, value in _origin(run, trained, base))


def _origin(run: SavedRun, trained: TrainedModel, base: Identity) -> list[tuple[str, str]]:
    model = trained.model
    revision = f", revision `{model.revision}`" if model.revision else ""
    return [
        ("base model", f"`{model.path}`{revision}"),
        ("its identity", f"SHA-256 `{base.sha256}`, over names and bytes of `config.json` and weights"),
        ("checkpoint", f"`{run.checkpoint.name}` of `{run.path.resolve().name}`"),
        ("type of the weights", f"{model.dtype}" + (f", layout `{trained.kind}`" if trained.kind else "")),
    ]


def _training(settings: dict[str, Any], run: SavedRun) -> list[tuple[str, str]]:
    """Return what config.yaml says of the training; a missing key is left out."""
    reward = setting(settings, "reward")
    judges = list(terms_of(settings).values()) or ([reward] if isinstance(reward, dict) else [])
    known = {
        "algorithm": (name := algorithm(run)) and f"`{name}`",
        "steps": f"{run.step}" + (f" of {steps}" if (steps := setting(settings, "algorithm.steps")) else ""),
        "prompts": f"{run.state.episodes:,}" + _of_each(settings),
        "data": (data := setting(settings, "data.path")) and f"`{data}`",
        "reward model": " + ".join(f"`{judge_of(one)}` (`{one.get('kind')}`)" for one in judges if judge_of(one)),
        "selection": (method := setting(settings, "freeze.method")) and f"`freeze.method={method}`",
        "seed": f"{settings.get('seed')}",
    }
    return [(what, value) for what, value in known.items() if value]


def _of_each(settings: dict[str, Any]) -> str:
    """Return how many responses a prompt had, where it had several; dpo and rm do not draw any."""
    group = setting(settings, "algorithm.responses_per_prompt")
    return f", {group} responses to each" if group and group > 1 else ""


def _share(trained: TrainedModel, table: FreezeTable) -> str:
    lora, is_part = trained.lora, table.parameters_trained < table.parameters_of
    return (
        f"{f'LoRA adapters of rank {lora.rank} and alpha {lora.alpha:g}, merged into the weights: ' if lora else ''}"
        f"{len(table.names)} tensors with {table.parameters_trained:,} of {table.parameters_of:,} parameters "
        f"({table.parameters_trained / table.parameters_of:.1%})."
        f"{' All others are as in the base model.' if is_part else ''}"
    )


def _module_types(table: FreezeTable) -> str:
    rows = [
        (f"`{row.type}`", f"{row.trained} of {row.of}", f"{row.parameters_trained:,}")
        for row in table.rows
        if row.trained
    ]
    return markdown_table(("module type", "tensors trained", "parameters"), rows)


def _evaluations(run: SavedRun, files: read_run.RunFiles) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl up to the checkpoint that hold an evaluation."""
    rows = [row for row in files.metrics if row["step"] <= run.step]
    return [row for row in rows if any(key.startswith("eval/") for key in row)]


def _measured(evaluations: list[dict[str, Any]]) -> str:
    """Return the first evaluation, and the last one up to the checkpoint."""
    if not evaluations:
        return "Nothing up to this step: it has made no evaluation."
    first, last = evaluations[0], evaluations[-1]
    ends = [first] if first is last else [first, last]
    keys = [key for key in last if key.startswith("eval/")]
    header = ("in `metrics.jsonl`", *(f"step {row['step']}" for row in ends))
    return markdown_table(header, [(f"`{key}`", *(_number(row.get(key)) for row in ends)) for key in keys])


def _samples(run: SavedRun, files: read_run.RunFiles, evaluations: list[dict[str, Any]]) -> list[str]:
    """Return the first held-out prompts with the response before training and the last up to the checkpoint."""
    steps = sorted({row["step"] for row in files.samples if row["step"] <= run.step and "response" in row})
    if not evaluations or not steps:
        return []
    first, last = ([row for row in files.samples if row["step"] == step] for step in (steps[0], steps[-1]))
    before = {json.dumps(row.get("prompt")): row for row in first}
    parts = [
        "## Samples",
        f"The first {min(SAMPLES, len(last))} of the held-out prompts that the run keeps.",
    ]
    for row in last[:SAMPLES]:
        parts += ["Prompt:", _fenced(row.get("prompt"))]
        earlier = before.get(json.dumps(row.get("prompt")))
        for one in [earlier, row] if earlier and earlier is not row else [row]:
            score = f", score {_number(one['score'])}" if "score" in one else ""
            parts += [f"Step {one['step']}{score}:", _fenced(one["response"])]
    return parts


def _fenced(value: object) -> str:
    """Return a text, or what is not one as JSON, in a block whose fence is longer than any in it."""
    text = clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:LONGEST_SAMPLE]
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 3)
    return f"{fence}text\n{text}\n{fence}"


def _settings(settings: dict[str, Any]) -> str:
    """Return the sections that say how it was trained; none of them holds a path of the machine or an address."""
    told = {name: settings[name] for name in SECTIONS if isinstance(settings.get(name), dict)}
    told["freeze"] = {key: value for key, value in told.get("freeze", {}).items() if key != "scan"}
    return f"```yaml\nseed: {settings.get('seed')}\n{redact(yaml.safe_dump(told, sort_keys=False))}```"


def _limits(settings: dict[str, Any], trained: TrainedModel, evaluations: list[dict[str, Any]]) -> str:
    """Return what the numbers above do not show, as far as the files tell."""
    if not evaluations:
        measured = "The run has measured nothing up to this step: whether training helped is not known."
    elif trained.kind:
        measured = "Accuracy is that on held-out rows of the same data; other prompts and answers were not measured."
    else:
        judge = "the data that it learned from" if "dpo" in settings else "the reward model that training maximised"
        measured = f"The held-out numbers are by {judge}, on prompts of the same data: they are no judgement of people."
    suites = ("eval/function_calling", "eval/instructions", "eval/perplexity")
    skills = [key for key in (evaluations or [{}])[-1] if key.startswith(suites)]
    lines = [measured]
    if not trained.kind and not skills:
        lines.append("Whether a skill of the base model was lost was not measured: `starling evaluate` does that.")
    lines.append(
        "Safety, bias and truthfulness were not measured, nor languages and subjects that the data lacks. "
        "What limits the base model, limits this one."
    )
    return "\n".join(f"- {line}" for line in lines)


def _licence(trained: TrainedModel) -> str:
    stated = licence(trained.directory)
    if not stated:
        return "Not known: see those of the base model, of the data and of the reward model."
    name = stated.get("license_name", stated["license"])
    return f"The base model's card says `{name}`. Those of the data and of the reward model may add conditions."


def _number(value: Any) -> str:
    return f"{value:.6g}" if read_run.is_number(value) else "-"


def _use(settings: dict[str, Any], trained: TrainedModel) -> str:
    if trained.kind is None:
        return USE_POLICY
    if trained.kind == classifier.KIND:
        return USE_CLASSIFIER.format(kind=trained.kind, max_length=setting(settings, "rm.max_length"))
    newline = bool(setting(settings, "rm.trailing_newline"))
    return USE_REWARD.format(
        kind=trained.kind,
        dtype=trained.model.dtype,
        max_length=setting(settings, "rm.max_length"),
        newline=", trailing_newline=True" if newline else "",
        key=" reward.trailing_newline=true" if newline else "",
    )
