"""The policy that ppo and dpo train: its tokenizer checked, its selected matrices trainable, and how it is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import FreezeConfig, ModelConfig
from starling_train.data.chat import Chat
from starling_train.files.identity import Identity
from starling_train.files.whole import write_text
from starling_train.models import adapters, causal_lm
from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.positions import positions_of
from starling_train.models.reward.net import Network
from starling_train.models.source import ModelSource
from starling_train.run.checkpoints import ExtraFiles
from starling_train.run.runtime import Runtime
from starling_train.selection import freeze
from starling_train.selection.records import Record
from starling_train.selection.scans import scan_or_list
from starling_train.selection.select import select

TEMPLATE = "chat_template.jinja"  # in a run's directory: the policy's template as it is trained with, if not Openchat's


def load_chat(source: ModelSource, model: ModelConfig) -> Chat:
    """Open the policy's tokenizer and the template that `model` names. Raises UserError, naming the source's key."""
    _ = source.policy_config  # read along with the tokenizer: errors in it are reported first, as its own
    where = f"{source.key}: {source.directory}"
    return Chat.checked(source.tokenizer, where, model.template, model.template_kwargs, source.generation_ends)


def check_lengths(config: PpoConfig | DpoConfig, model_config: Any, chat: Chat) -> None:
    """Raise UserError if prompt and response together can outgrow the model's positions, or ids its vocabulary."""
    check_vocabulary(model_config, chat)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    positions = positions_of(model_config)
    if longest > positions.most:
        raise UserError(
            f"rollout.max_new_tokens: {config.rollout.max_new_tokens} and data.max_prompt_tokens "
            f"{config.data.max_prompt_tokens} make {longest} tokens, more than the model's "
            f"{positions.what}; lower one of them"
        )


def check_vocabulary(model_config: Any, chat: Chat, key: str = "model.path") -> None:
    """Raise UserError, naming the model's `key`, if the tokenizer has ids that the model has no embedding for."""
    if (highest := max(chat.tokenizer.get_vocab().values())) >= (size := model_config.get_text_config().vocab_size):
        raise UserError(
            f"{key}: the tokenizer has ids up to {highest}, the model only {size} embeddings; "
            "use the tokenizer that belongs to the model"
        )


def check_share(key: str, count: int, runtime: Runtime) -> None:
    """Raise UserError if `count` prompts are too few for each process to have one."""
    if count < runtime.world:
        raise UserError(f"{key}: {count} prompts for {runtime.world} processes; give each at least one, or start fewer")


@dataclass
class SelectedPolicy:
    """A causal LM with its trainable parameters marked, the names selected, the table, and the scan.

    base: the directory of the model it started as. extra_files: writes its adapters, if it has any, into each
    checkpoint as PEFT reads them.
    """

    config: PpoConfig | DpoConfig
    source: ModelSource
    model: CausalLM
    selected: list[str]
    table: freeze.FreezeTable
    records: dict[str, Record]

    @property
    def base(self) -> Path | Identity:
        return self.source.known_identity or self.source.directory

    @property
    def extra_files(self) -> ExtraFiles | None:
        config = self.config
        if not config.freeze.adapter:
            return None
        model = config.freeze.lora, config.model.path, config.model.revision
        return lambda folder, tensors: adapters.write(folder, tensors, "policy.", self.table.names, *model)

    def write(self, to: Path, chat: Chat) -> None:
        """Write a complete model, with tokenizer and template, whole or not at all.

        Adapters are merged into the weights, those of a quantised base unquantised.
        """
        base = None
        if self.config.model.load_in:
            base = causal_lm.load_causal_lm(self.source, dtype=self.config.model.dtype, device="cpu")
        whole = adapters.merged(self.model, base)
        causal_lm.save_model(whole, to, chat)


def keep_template(run: Path, chat: Chat) -> None:
    """Write a template that is not Openchat's into the run's directory; a later start must have the same one.

    Raises UserError for another: what was trained so far would not be what is trained from here on.
    """
    file, text = run / TEMPLATE, chat.template.text
    if file.is_file():
        if file.read_text("utf-8") != text:
            raise UserError(
                f"model.template: the chat template is not the one that {run} was begun with, {file}; put it back, or "
                "give another run_dir="
            )
    elif text:
        run.mkdir(parents=True, exist_ok=True)
        write_text(file, text)


def announce(name: str, model: Path, run: Path, runtime: Runtime) -> None:
    """Say what begins, before the minutes that scanning and loading a large model take.

    name: the run's.
    model: the directory of the model that trains.
    run: the run's directory.
    runtime: the processes; the first one says it.
    """
    if runtime.is_main:
        print(f"{name}: {model} on {runtime.describe()}; files go to {run}", flush=True)


def load_policy(
    config: PpoConfig | DpoConfig, source: ModelSource, chat: Chat, run: Path, runtime: Runtime
) -> SelectedPolicy:
    """Scan, select, load the weights and freeze the rest; with freeze.adapter, hang adapters onto what is selected.

    config: the run's configuration.
    source: the model.
    chat: its template is kept in the run's directory.
    run: directory of the run, whose own scan of the same weights is used.
    runtime: the processes.
    """
    announce(config.name, source.directory, run, runtime)
    runtime.on_first(lambda: keep_template(run, chat))
    records = runtime.on_first(lambda: scan_or_list(config.freeze, source, str(runtime.device), run))
    selected = select(config.freeze, records, config.seed)
    model = causal_lm.load_causal_lm(
        source,
        dtype=config.model.dtype,
        attention=config.model.attention,
        device=str(runtime.device),
        load_in=config.model.load_in,
    )
    if config.model.gradient_checkpointing:
        causal_lm.recompute_backwards(model)
    # quantised weights have neither their shapes nor gradients: the table is made from the empty model
    unquantised = causal_lm.build_empty(model.config) if config.freeze.adapter else model
    table = freeze.apply(config.freeze, unquantised, selected)
    add_adapters(config.freeze, model, table, runtime)
    return SelectedPolicy(config, source, model, selected, table, records)


def add_adapters(config: FreezeConfig, model: Network, table: freeze.FreezeTable, runtime: Runtime) -> None:
    """Hang adapters onto what the table names, if freeze.adapter is set; then only they train."""
    if config.adapter:
        runtime.seed_all("adapters")
        adapters.add(model, table.names, config.lora)
