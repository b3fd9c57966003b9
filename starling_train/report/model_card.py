"""README.md of an exported model: what it is, what was trained, what the run measured. Only what the files say."""

from pathlib import Path
from typing import Any

from starling_train import __version__
from starling_train.files.identity import Identity
from starling_train.models.reward import classifier
from starling_train.report import read_run
from starling_train.report.markup import markdown_table
from starling_train.report.read_run import setting
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


def render(run: SavedRun, trained: TrainedModel, table: FreezeTable, base: Identity) -> str:
    """Return the card of the model that `export` writes.

    run: the run.
    trained: the model that it trained.
    table: what trained in it.
    base: the base model's identity, which was compared with the checkpoint's.
    """
    settings = run.settings
    name = settings.get("name") or run.path.resolve().name
    return "\n\n".join(
        [
            _front(trained),
            f"# {name}, step {run.step}",
            f"{trained.what.capitalize()} of the run `{name}`, written by `starling_train` {__version__}.",
            markdown_table(("", ""), [*_origin(run, trained, base), *_training(settings, run)]),
            "## What was trained",
            _share(trained, table),
            _module_types(table),
            "## What the run measured",
            _measured(run),
            "## How to use it",
            _use(settings, trained),
            "No licence is stated here: see those of the base model, of the data and of the reward model.\n",
        ]
    )


def _front(trained: TrainedModel) -> str:
    """Return the header that the hub reads; it names the base model only by a hub id."""
    path = trained.model.path
    on_hub = path.count("/") == 1 and not path.startswith((".", "~", "/")) and not Path(path).is_dir()
    library = "transformers" if trained.kind in (None, classifier.KIND) else "starling_train"
    lines = ["---", f"library_name: {library}"]
    return "\n".join([*lines, *([f"base_model: {path}"] if on_hub else []), "---"])


def _origin(run: SavedRun, trained: TrainedModel, base: Identity) -> list[tuple[str, str]]:
    model = trained.model
    revision = f", revision `{model.revision}`" if model.revision else ""
    return [
        ("base model", f"`{model.path}`{revision}"),
        ("its identity", f"SHA-256 `{base.sha256}`, over names and bytes of `config.json` and weights"),
        ("checkpoint", f"`{run.checkpoint.name}`"),
        ("type of the weights", f"{model.dtype}" + (f", layout `{trained.kind}`" if trained.kind else "")),
    ]


def _training(settings: dict[str, Any], run: SavedRun) -> list[tuple[str, str]]:
    """Return what config.yaml says of the training; a missing key is left out."""
    algorithm = next((part for part in ("rm", "dpo") if part in settings), None) or setting(settings, "algorithm.name")
    where = {"server": "reward.url", "function": "reward.function"}
    reward = setting(settings, where.get(str(setting(settings, "reward.kind")), "reward.path"))
    known = {
        "algorithm": algorithm and f"`{algorithm}`",
        "steps": f"{run.step}" + (f" of {steps}" if (steps := setting(settings, "algorithm.steps")) else ""),
        "prompts": f"{run.state.episodes:,}",
        "data": (data := setting(settings, "data.path")) and f"`{data}`",
        "reward model": reward and f"`{reward}` (`{setting(settings, 'reward.kind')}`)",
        "selection": (method := setting(settings, "freeze.method")) and f"`freeze.method={method}`",
        "seed": f"{settings.get('seed')}",
    }
    return [(what, value) for what, value in known.items() if value]


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


def _measured(run: SavedRun) -> str:
    """Return the first evaluation, and the last one up to the checkpoint, from metrics.jsonl."""
    rows = [row for row in read_run.read(run.path).metrics if row["step"] <= run.step]
    rows = [row for row in rows if any(key.startswith("eval/") for key in row)]
    if not rows:
        return "Nothing up to this step: it has made no evaluation."
    first, last = rows[0], rows[-1]
    ends = [first] if first is last else [first, last]
    keys = [key for key in last if key.startswith("eval/")]
    header = ("in `metrics.jsonl`", *(f"step {row['step']}" for row in ends))
    return markdown_table(header, [(f"`{key}`", *(_number(row.get(key)) for row in ends)) for key in keys])


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
