"""What wrong inputs are made of: right models, data and servers, ways to spoil them, and the line that comes of it."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file


@dataclass
class World:
    """One row's own directory, and the right models (shared by all rows: copy before spoiling)."""

    here: Path
    models: Path
    servers: dict[str, int] = field(default_factory=dict)

    def names(self) -> dict[str, Any]:
        """What `{name}` means in a row's arguments."""
        fixed = {"here": self.here, "policy": self.models / "policy", "reward": self.models / "reward"}
        made = {name: self.models / name for name in ("classifier", "run")}
        return fixed | made | {"long": "x" * 5000} | self.servers

    def copy(self, model: str) -> Path:
        """A copy of a model to spoil, as `{here}/MODEL`."""
        return Path(shutil.copytree(self.models / model, self.here / model))


Make = Callable[[World], object]


def text(name: str, content: str | bytes) -> Make:
    """Write a file of the row's directory."""

    def make(world: World) -> None:
        file = world.here / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def rows(name: str, *values: Any) -> Make:
    return text(name, "".join(json.dumps(value) + "\n" for value in values))


def table(name: str, **columns: Any) -> Make:
    return lambda world: pq.write_table(pa.table(columns), world.here / name)


def folder(name: str) -> Make:
    return lambda world: (world.here / name).mkdir(parents=True)


def link(name: str) -> Make:
    """A link to nothing."""
    return lambda world: (world.here / name).symlink_to(world.here / "not" / "there")


def together(*makes: Make) -> Make:
    return lambda world: [make(world) for make in makes]


def spoiled(model: str, file: str, content: str | bytes | None) -> Make:
    """A copy of a model with another content of a file; None removes it."""

    def make(world: World) -> None:
        path = world.copy(model) / file
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def cut(model: str, file: str, keep: float = 0.5) -> Make:
    """A copy of a model with a file that ends too early."""

    def make(world: World) -> None:
        path = world.copy(model) / file
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return make


def settings(model: str, file: str = "config.json", **values: Any) -> Make:
    """A copy of a model with other values in a JSON file; None removes a key."""

    def make(world: World) -> None:
        path = world.copy(model) / file
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return make


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """A copy of the policy with changed weights."""

    def make(world: World) -> None:
        file = world.copy("policy") / "model.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, metadata={"format": "pt"})

    return make


def without(name: str) -> Make:
    return tensors(lambda held: held.pop(name))


def reward_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """A copy of the reward model with changed weights."""

    def make(world: World) -> None:
        file = world.copy("reward") / "pytorch_model.bin"
        held = torch.load(file, weights_only=True)
        change(held)
        torch.save(held, file)

    return make


def index(weight_map: Any, with_weights: bool = True) -> Make:
    """A copy of the policy with an index beside its weights."""

    def make(world: World) -> None:
        path = world.copy("policy")
        if with_weights:
            (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return make


def adapter(name: str, **others: str | bytes) -> Make:
    """The files of an adapter of org/base in a directory of the row's, whatever else it holds."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"}
    files = {"adapter_config.json": json.dumps(config), "adapter_model.safetensors": b"x"} | others
    return together(*(text(f"{name}/{file}", content) for file, content in files.items()))


def leftover(model: str) -> Make:
    """A copy of a model with an adapter's files beside its weights."""
    return together(lambda world: world.copy(model), adapter(model))


def no_end_of_turn(world: World) -> None:
    path = world.copy("policy")
    (path / "chat_template.jinja").unlink()
    for file in (path / "tokenizer.json", path / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("<|end_of_turn|>", "<|something|>"))


class Payload:
    """Code in a pickle: makes a file where it is read without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def code_in(model: str, file: str = "pytorch_model.bin") -> Make:
    """A copy of a model with code in its weights."""

    def make(world: World) -> None:
        path = world.copy(model)
        for weights in (*path.glob("*.safetensors"), *path.glob("*.bin")):
            weights.unlink()
        (path / file).write_bytes(pickle.dumps({"v_head.weight": Payload(world.here / "ran")}))

    return make


def broken_pages(name: str) -> Make:
    """A parquet file whose end is right, and whose pages are not."""

    def make(world: World) -> None:
        table(name, prompt=[f"question {i} " * 9 for i in range(2000)])(world)
        content = bytearray((world.here / name).read_bytes())
        content[4:400] = b"\xff" * 396
        (world.here / name).write_bytes(content)

    return make


def classifier_without_head(world: World) -> None:
    file = world.copy("classifier") / "model.safetensors"
    held = load_file(file)
    del held["score.weight"]
    save_file(held, file, metadata={"format": "pt"})


def bert(world: World) -> None:
    """A classifier with learned positions, 64 of them."""
    from reward_checkpoints import PIECES, small_tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(PIECES), max_position_embeddings=64, num_labels=1, **size)
    BertForSequenceClassification(config).save_pretrained(world.here / "bert")
    small_tokenizer().save_pretrained(world.here / "bert")


def judging(world: World) -> None:
    """MT-Bench's three files with a question each."""
    from starling_train.evals.mt_bench import bench

    templates = [
        {"name": name, "system_prompt": "Judge.", "prompt_template": " ".join(f"{{{f}}}" for f in bench.FIELDS[key])}
        for key, name in bench.JUDGE_PROMPTS.items()
    ]
    rows("judge_prompts.jsonl", *templates)(world)
    rows("question.jsonl", {"question_id": 1, "category": "stem", "turns": ["Why?", "Why not?"]})(world)
    rows("reference_answer_gpt-4.jsonl", {"question_id": 1, "choices": [{"turns": ["So.", "Thus."]}]})(world)


def calls(world: World) -> None:
    """A case of the leaderboard's."""
    function = {"name": "f", "parameters": {"properties": {}}}
    question = [[{"role": "user", "content": "hi"}]]
    rows("BFCL_v4_irrelevance.json", {"id": "a", "question": question, "function": [function]})(world)


def unranked(world: World) -> None:
    """A published scan of the policy: scores and types only."""
    listing = {
        f"model.layers.{layer}.{kind}": {"snr": 1.0, "type": kind}
        for layer in range(4)
        for kind in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
    }
    text("scan.json", json.dumps(listing))(world)
