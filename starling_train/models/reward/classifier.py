"""A reward model as a plain sequence classifier of transformers: one label, read at the last token that is no padding.

Whatever `AutoModelForSequenceClassification` builds from a decoder with a linear head `score`; transformers, TRL and
servers load the directory that is written. They find a conversation's last token by the id of the padding, so that id
must be one that does not end a conversation.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config.fields import UserError
from starling_train.data import reward_templates
from starling_train.data.stand_ins import special_strings
from starling_train.models import causal_lm, written
from starling_train.models.families.positions import positions_of
from starling_train.models.header_checks import check_shapes, entries_by_name
from starling_train.models.reward import loading
from starling_train.models.reward.net import RewardNet
from starling_train.models.reward.source import RewardSource

KIND = "sequence_classification"
HEAD = "score.weight"
PROBE = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]


def is_classifier(source: RewardSource) -> bool:
    """Return whether a directory has the head of a classifier already."""
    return any(entry.name == HEAD for entry in source.model.entries)


def read_config(source: RewardSource, max_length: int) -> Any:
    """Return the configuration of the classifier that a directory becomes: one label, a padding id, no dropout.

    Raises UserError for a type without a classifier, and for a vocabulary or positions that are too few.
    """
    from transformers import AutoModelForSequenceClassification

    given, key = source.configured.config, source.configured.key
    if type(given) not in AutoModelForSequenceClassification._model_mapping:
        raise UserError(
            f"{key}: transformers has no sequence classifier of type '{given.model_type}'; give another model, or a "
            "Llama or Mistral with rm.kind=starling_7b"
        )
    config = causal_lm.without_dropout(given)
    text = config.get_text_config()
    positions = positions_of(text)
    if max_length > positions.most:
        raise UserError(f"rm.max_length: {max_length} is more than the model's {positions.what}; lower it")
    source.check_vocabulary()
    config.num_labels = 1
    for part in (config, text):
        part.pad_token_id = padding_id(source.tokenizer)
    model = build(config, "meta")
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(
            f"{key}: {type(model).__name__} has no linear head `score` on a decoder; give a decoder such as Llama"
        )
    return config


def padding_id(tokenizer: Any) -> int:
    """Choose the id of the padding: the tokenizer's own unless conversations have it, else a special token's.

    Where every special token occurs in conversations, the tokenizer's own, or its end of text: what is behind the last
    other token of a conversation is then not read, as in transformers.
    """
    used = set(encode(PROBE, tokenizer)) | {tokenizer.bos_token_id, tokenizer.eos_token_id}
    specials = tokenizer.convert_tokens_to_ids(special_strings(tokenizer))
    own = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    candidates = [index for index in (*own, *specials) if index is not None]
    unused = [index for index in candidates if index not in used]
    return next(iter([*unused, *candidates, tokenizer.eos_token_id or 0]))


def encode(messages: list[dict], tokenizer: Any) -> list[int]:
    """Encode a conversation by the tokenizer's own template."""
    return reward_templates.encode_conversation(KIND, messages, tokenizer)


def check(source: RewardSource, config: Any) -> None:
    """Check names and shapes of a classifier that training starts from. Raises UserError."""
    expected = {name: parameter.shape for name, parameter in build(config, "meta").state_dict().items()}
    held = {name: entry.shape for name, entry in entries_by_name(source.model).items()}
    check_shapes({name: shape for name, shape in expected.items() if name in held}, held, str(source.directory))


def check_tokenizer(tokenizer: Any, config: Any) -> None:
    """Raise UserError unless others make the same ids of a conversation with the tokenizer that will be written."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        _write_tokenizer(tokenizer, config, Path(folder))
        _read_back(tokenizer, Path(folder))


def build(config: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """Build the classifier of a configuration, with random weights."""
    from transformers import AutoModelForSequenceClassification

    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(copy.deepcopy(config), dtype=dtype)


def net_of(classifier: Any, starts: bool) -> RewardNet:
    """Return the classifier as the network that trains. starts: its head becomes zero, as `RewardNet.from_config`'s."""
    if starts:
        nn.init.zeros_(classifier.score.weight)
    return RewardNet(classifier.base_model, classifier.score)


def load(source: RewardSource, config: Any, dtype: str, attention: str) -> RewardNet:
    """Load a causal language model or a classifier of one label to train. Raises UserError for tensors that lack."""
    options = {"dtype": getattr(torch, dtype), "attn_implementation": causal_lm.supported_attention(config, attention)}
    model, report = loading.read_classifier(source.directory, copy.deepcopy(config), options)
    starts = HEAD in report["missing_keys"]
    report["missing_keys"] = set(report["missing_keys"]) - ({HEAD} if not is_classifier(source) else set())
    loading.check_report(report, source.directory)
    return net_of(model, starts)


def write(net: RewardNet, config: Any, directory: Path, tokenizer: Any) -> None:
    """Write the classifier and its tokenizer, and read back what loading depends on. Raises UserError."""
    model = build(config, "meta")
    setattr(model, model.base_model_prefix, net.transformer)
    model.score = net.v_head
    model.config.dtype = net.v_head.weight.dtype
    model.save_pretrained(directory)
    _write_tokenizer(tokenizer, config, directory)
    written.complete(directory)
    _read_back(tokenizer, directory)


def _write_tokenizer(tokenizer: Any, config: Any, directory: Path) -> None:
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    padded.padding_side = "right"
    padded.save_pretrained(str(directory))
    written.complete(directory)


def _read_back(tokenizer: Any, directory: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    read = theirs.apply_chat_template(PROBE, tokenize=True, return_dict=True)["input_ids"]
    if list(read) != encode(PROBE, tokenizer):
        raise UserError(
            f"rm.tokenizer: transformers' {type(theirs).__name__} makes other ids than training with the tokenizer "
            "that is written; give a directory with a tokenizer.json of its own"
        )
    if config.num_labels != 1 or theirs.pad_token_id != config.get_text_config().pad_token_id:
        raise UserError(
            f"{directory}: read back with {config.num_labels} labels and padding {theirs.pad_token_id}, not 1 and "
            f"{config.get_text_config().pad_token_id}"
        )
