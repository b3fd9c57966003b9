"""Teach a chat model function calling, a skill that later training can lose: `python benchmarks/skill/teach.py MODEL OUT`.

Supervised training of all weights with TRL's SFTTrainer, for one epoch, on the training cases of `cases.py`: prompts as
the suite `function_calling` writes them in the model's own template, answers in the leaderboard's format, loss on the
answer alone. Mixed in are answers that MODEL itself draws at temperature 1 to prompts of --chat, by default 250: they
are samples of what it would say anyway, so that in expectation their gradient is 0 where training starts, and they hold
the chat model, its entropy included, where it is. Nothing is learnt of which answers people prefer, so it does not
matter that later runs hold some of these prompts out.

Weights and moments are float32, the arithmetic is bfloat16 (AdamW's steps are smaller than bfloat16 resolves); OUT, a
plain Hugging Face directory in bfloat16, appears when all is done. Until then OUT.teaching holds the model's own answers and
a checkpoint that is at most --save-minutes old: the same command continues from it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)]

if __name__ == "__main__":  # before transformers is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import cases
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from starling_train.config.sections import ModelConfig, RolloutConfig
from starling_train.data import nectar
from starling_train.data.chat import Chat
from starling_train.evals.function_calling.cases import Case, conversation
from starling_train.files.whole import remove, write_text, write_whole
from starling_train.models.causal_lm import load_causal_lm
from starling_train.models.source import ModelSource
from starling_train.rollout.generate import generate
from starling_train.training.policy import load_chat

# before the process starts: glibc then keeps the large blocks of a step for the next one, a quarter of the time
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
SIDE_BY_SIDE = 4  # rows that go through the model together; a step of 16 at once needs 14 GB more
PADDED_TO = 64  # tokens: memory grows with every new length of a row, by kernels and blocks that are kept
IGNORED = -100  # a label without loss
MAX_PROMPT, MAX_ANSWER = 192, 128  # tokens, of the conversations that are mixed in
SETTINGS = ("model", "training", "chat", "answers", "batch", "learning_rate", "seed", "steps")


class SaveByTime(TrainerCallback):
    """Save a checkpoint at the first step after so many minutes, and say where training stands."""

    def __init__(self, minutes: float):
        self.seconds, self.saved = 60 * minutes, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.saved > self.seconds:
            self.saved, control.should_save = time.monotonic(), True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            tokens, right = logs["num_tokens"], logs["mean_token_accuracy"]
            said = f"loss {logs['loss']:.3f}, {100 * right:.1f} % of tokens right, {tokens:,.0f} tokens seen"
            print(f"step {state.global_step} of {state.max_steps}: {said}", flush=True)


def case_rows(chat: Chat, count: int, seed: int) -> list[dict[str, list[int]]]:
    """Return the training cases as ids and labels."""
    rows = []
    for case in cases.draw_cases("training", count, seed):
        asked = Case("", case.kind, [{"role": "user", "content": case.request}], case.functions, None)
        talk = [*chat.adapted(conversation(asked)), {"role": "assistant", "content": case.answer}]
        rows.append(row(*chat.answered(talk)))
    return rows


def row(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """Return ids with labels of the answer alone."""
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def own_answers(source: ModelSource, chat: Chat, arguments: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Have the model answer prompts of the data, once each, then once more, until there are enough. Kept in a file.

    An answer that MAX_ANSWER cuts has no end of turn, so that none is taught there.
    """
    path = Path(f"{arguments.out}.teaching") / "answers.json"
    if path.is_file():
        return json.loads(path.read_text())
    prompts = [chat.prompt(chat.adapted(data.messages)) for data in nectar.load(arguments.chat).rows]
    short = [prompt for prompt in prompts if len(prompt) <= MAX_PROMPT]
    asked = [short[index % len(short)] for index in range(arguments.answers)]
    print(f"{arguments.model} answers {len(asked)} times, {len(short)} of {len(prompts)} prompts", flush=True)
    policy = load_causal_lm(source, dtype="bfloat16")
    torch.manual_seed(arguments.seed)
    rollout = generate(policy, chat, asked, RolloutConfig(max_new_tokens=MAX_ANSWER, slots=32))
    rows = [row(prompt, list(answer)) for prompt, answer in zip(rollout.prompts, rollout.responses, strict=True)]
    write_text(path, json.dumps(rows))
    return rows


def checkpoint(directory: Path) -> str | None:
    """Return the newest checkpoint that is whole: the trainer's state is what it writes last."""
    whole = [path.parent for path in directory.glob("checkpoint-*/trainer_state.json") if path.stat().st_size]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def keep_settings(path: Path, arguments: argparse.Namespace) -> None:
    """Write what a checkpoint depends on. Raises SystemExit where an earlier start had something else."""
    settings = {key: str(getattr(arguments, key)) for key in SETTINGS}
    if path.is_file() and (before := json.loads(path.read_text())) != settings:
        changed = ", ".join(key for key in SETTINGS if before.get(key) != settings[key])
        sys.exit(f"{path.parent} was begun with another {changed}; give the same, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings))


def trainer(model: Any, chat: Chat, rows: list[dict[str, list[int]]], arguments: argparse.Namespace) -> Any:
    """Return TRL's trainer of all weights; batches are of rows of about one length."""
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=f"{arguments.out}.teaching", use_cpu=not torch.cuda.is_available(), bf16=True, seed=arguments.seed,
        num_train_epochs=1, max_steps=arguments.steps or -1, per_device_train_batch_size=SIDE_BY_SIDE,
        gradient_accumulation_steps=max(1, arguments.batch // SIDE_BY_SIDE),
        train_sampling_strategy="group_by_length", learning_rate=arguments.learning_rate, lr_scheduler_type="linear",
        warmup_steps=10, weight_decay=0.0, max_grad_norm=1.0, adam_beta2=0.95, gradient_checkpointing=False,
        max_length=None, pad_to_multiple_of=PADDED_TO, save_strategy="no", save_total_limit=2, logging_steps=10, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    made = SFTTrainer(
        model,
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
        callbacks=[SaveByTime(arguments.save_minutes)],
    )
    made.remove_callback(PrinterCallback)
    return made


def main(arguments: argparse.Namespace) -> None:
    """Teach, then write OUT."""
    if (arguments.out / "config.json").is_file():
        return print(f"{arguments.out} is there already")
    torch.set_num_threads(arguments.threads)
    began, folder = time.monotonic(), Path(f"{arguments.out}.teaching")
    keep_settings(folder / "settings.json", arguments)
    source = ModelSource.open(str(arguments.model), "MODEL")
    chat = load_chat(source, ModelConfig(path=str(arguments.model)))
    own = own_answers(source, chat, arguments) if arguments.answers else []
    rows = [*case_rows(chat, arguments.training, arguments.seed), *own]
    tokens = sum(len(row["input_ids"]) for row in rows)
    print(f"{arguments.training:,} cases and {len(own)} of its own answers, {tokens:,} tokens", flush=True)
    model = load_causal_lm(source, dtype="float32")
    taught = trainer(model, chat, rows, arguments)
    if start := checkpoint(folder):
        print(f"continues from {start}", flush=True)
    taught.train(resume_from_checkpoint=start)

    def write(partial: Path) -> None:
        chat.tokenizer.save_pretrained(partial)
        model.to(torch.bfloat16).save_pretrained(partial)

    write_whole(arguments.out, write)
    remove(folder)
    print(f"{arguments.out}, after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def parsed(line: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a chat model's directory")
    parser.add_argument("out", type=Path, help="of the taught model")
    parser.add_argument("--chat", default=os.path.expandvars("$STARLING_DATA/nectar"), help="prompts, as data.path")
    parser.add_argument("--training", type=int, default=2000, help="cases")
    parser.add_argument("--answers", type=int, default=250, help="answers of its own")
    parser.add_argument("--batch", type=int, default=16, help=f"rows a step, a multiple of {SIDE_BY_SIDE}")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many; 0: an epoch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(line)


if __name__ == "__main__":
    if MALLOC.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    main(parsed())
