"""A model directory as others read it: what is written carries what training assumed, for older readers too.

transformers 5 names a few things anew. Its predecessor passes over what it does not know: it takes a rotary base of
10,000 where `rope_theta` is missing, and float32 where `torch_dtype` is. Both names are written, for both to read.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.chat import Chat
from starling_train.files.json_object import read_json
from starling_train.models.source import UNUSABLE, first_line

# Tokenizer classes of transformers 5 alone, and what its predecessor calls a tokenizer that is all in tokenizer.json.
NEW_CLASSES, OLD_CLASS = ("TokenizersBackend",), "PreTrainedTokenizerFast"
OLD_KEYS = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
ANYBODY = 0o666
PROBES = ("Hello  there,\n world 12345 ", " a\tÄ ", "don't")


def write(model: Any, directory: Path, chat: Chat) -> None:
    """Write a causal LM in Hugging Face format, safetensors, with its tokenizer, and read back what loading depends on.

    chat: the tokenizer and the template that the model was trained with. Raises UserError.
    """
    name_ends(model, chat)
    model.save_pretrained(directory)
    chat.save(directory)
    complete(directory, tied=is_tied(model))
    check(directory, model)
    check_chat(directory, chat)


def name_ends(model: Any, chat: Chat) -> None:
    """Let the model's configurations name every id that ends an answer, and a pad id that does not."""
    ends = [chat.end_of_turn, *sorted(chat.end_ids - {chat.end_of_turn})]
    for config in (model.generation_config, model.config):
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
        if config.pad_token_id in chat.end_ids:
            config.pad_token_id = chat.pad_id
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = chat.pad_id


def complete(directory: Path, tied: bool | None = None) -> None:
    """Amend what `save_pretrained` has written of a model and its tokenizer, for other readers.

    tied: of a causal LM, whether its head is the embedding matrix; its config.json says so, whatever the base's said.
    """
    said = {} if tied is None else {"tie_word_embeddings": tied}
    _amend(directory / "config.json", lambda held: held | _older_names(held) | said)
    name_tokenizer(directory)
    allow_reading(directory)


def name_tokenizer(directory: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it, unless that changes what transformers 5 makes of it.

    For a name that it does not know by heart transformers 5 goes by the model's type, and builds its usual tokenizer.
    """
    file = directory / "tokenizer_config.json"
    if not file.is_file() or read_json(file).get("tokenizer_class") not in NEW_CLASSES:
        return
    before, ids = file.read_text(), _probe_ids(directory)
    _amend(file, _older_tokenizer)
    if _probe_ids(directory) != ids:
        file.write_text(before)


def _probe_ids(directory: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    texts = [*PROBES, *(token.content + PROBES[0] for token in tokenizer.added_tokens_decoder.values())]
    return [tokenizer(text).input_ids for text in texts]


def allow_reading(directory: Path) -> None:
    """Give every file the mode that the process's umask asks for: safetensors writes files that only we can read."""
    mask = os.umask(0)
    os.umask(mask)
    for file in directory.iterdir():
        if file.is_file():
            file.chmod(ANYBODY & ~mask)


def check(directory: Path, model: Any) -> None:
    """Read a written model's configuration and headers back, and compare them with the model that was written.

    Raises UserError, naming the directory, for a difference: whoever loads it would run another model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except UNUSABLE as error:
        raise UserError(f"{directory}: what was written cannot be read back ({first_line(error)})") from error
    for name in ("rope_parameters", "vocab_size", "num_hidden_layers", "tie_word_embeddings"):
        written, trained = getattr(config, name, None), getattr(model.config, name, None)
        if name == "tie_word_embeddings":
            trained = is_tied(model)
        elif name == "rope_parameters" and written:
            written = {key: value for key, value in written.items() if key != "type"}  # rope_type's older name
        if written != trained:
            raise UserError(f"{directory}/config.json: {name} was written as {written}, trained as {trained}")


def check_chat(directory: Path, chat: Chat, source: str | None = None) -> None:
    """Read a written tokenizer and generation_config.json back, as a server does, and compare them with training's.

    Raises UserError, naming `source` or else the directory, where probe conversations become other ids than in
    training, or where an answer would not end at an id that ended it there.
    """
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    _check_probes(tokenizer, chat, source or str(directory))
    if not (directory / "generation_config.json").is_file():
        return
    held = GenerationConfig.from_pretrained(directory)
    named = held.eos_token_id if isinstance(held.eos_token_id, list) else [held.eos_token_id]
    if missing := sorted(chat.end_ids - set(named)):
        raise UserError(
            f"{directory}/generation_config.json: eos_token_id lacks {missing}, where answers end in training"
        )


def check_writable(chat: Chat, source: str) -> None:
    """Write the tokenizer into a folder that is thrown away and read it back: before a run, for what would end it.

    source: a key and a path, for messages.

    Raises UserError as `check_chat`.
    """
    with tempfile.TemporaryDirectory() as folder:
        chat.save(folder)
        name_tokenizer(Path(folder))
        check_chat(Path(folder), chat, source)


def _check_probes(tokenizer: Any, chat: Chat, source: str) -> None:
    for messages, ids in chat.probes():
        try:
            written = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        except Exception as error:  # a template raises what it likes
            raise UserError(f"{source}: the written chat template fails ({first_line(error)})") from error
        if written != ids:
            where = next((i for i, (a, b) in enumerate(zip(written, ids, strict=False)) if a != b), len(ids))
            roles = ", ".join(message["role"] for message in messages)
            here = slice(where, where + 5)
            raise UserError(
                f"{source}: as written, its tokenizer and chat template make other ids than training does of a "
                f"conversation of {roles}, from token {where} on: {written[here]} instead of {ids[here]}; "
                "give model.template=FILE.jinja, or the tokenizer in another form"
            )


def _older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys by which transformers 4 knows what transformers 5 has written."""
    older = {"torch_dtype": config["dtype"]} if config.get("dtype") else {}
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one for each kind of layer
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            older["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"] or {}
    named = OLD_KEYS.get(config.get("model_type", ""), {})
    older |= {named.get(key, key): rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope.get("rope_type") == "longrope":  # exactly these, and the length beside them
        older["rope_scaling"] = {"type": "longrope"} | {name: rope[name] for name in ("short_factor", "long_factor")}
        older["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    elif rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return older


def is_tied(model: Any) -> bool:
    """Return whether the output head is the embedding matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    config = config | {"tokenizer_class": OLD_CLASS}
    if isinstance(config.get("extra_special_tokens"), list):  # a mapping, where transformers 4 reads that name
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config


def _amend(file: Path, change: Any) -> None:
    if file.is_file():
        file.write_text(json.dumps(change(read_json(file)), indent=2, ensure_ascii=False) + "\n")
