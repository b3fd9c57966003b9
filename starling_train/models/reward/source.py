"""A reward model's directory, and its tokenizer's if that is another one, opened once."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.sections import ScorerConfig
from starling_train.data import reward_templates
from starling_train.data.encoder_text import EncoderText
from starling_train.models.reward.checkpoint import SUFFIX_OF
from starling_train.models.source import UNUSABLE, ModelSource

CLASSIFIER = "sequence_classification"


class RewardSource:
    """A reward model's directory and its tokenizer's.

    kind: whose template and layout.
    model: weights and configuration.
    tokens: where the tokenizer lies, usually `model` itself.
    tokenizer_key: the configuration key of the tokenizer's directory, for messages.

    Starling-RM-7B-alpha comes without config.json: the tokenizer's directory, its base model's, then has it.
    """

    def __init__(self, kind: str, model: ModelSource, tokens: ModelSource, tokenizer_key: str):
        self.kind, self.model, self.tokens, self.tokenizer_key = kind, model, tokens, tokenizer_key

    @classmethod
    def open(
        cls,
        kind: str,
        path: str | Path,
        tokenizer: str | Path | None = None,
        *,
        key: str = "reward.path",
        tokenizer_key: str = "reward.tokenizer",
        revision: str | None = None,
        weights: bool = True,
        only: str | None = None,
    ) -> "RewardSource":
        """Open both. weights=False fetches configuration and tokenizer only. Raises UserError for what is missing.

        only: `safetensors` or `bin`, where the weights are in no other files; "": in whatever files a model's are;
            None: as the layout of `kind` has it.
        """
        only = SUFFIX_OF.get(kind, "") if only is None else only
        model = ModelSource.open(path, key, revision, weights=weights, needs_config=False, only=only)
        tokens = ModelSource.open_tokenizer(tokenizer, tokenizer_key) if tokenizer else model
        if not (model.has_config or tokens.has_config):
            raise UserError(
                f"{key}: {model.directory} has no config.json; copy the base model's there (Llama-2-7b-chat's, "
                "Yi-34B-Chat's)"
            )
        return cls(kind, model, tokens, tokenizer_key)

    @classmethod
    def of(cls, config: ScorerConfig, *, weights: bool = True) -> "RewardSource":
        """Open what the section `reward` names."""
        return cls.open(config.kind, config.path, config.tokenizer, weights=weights)

    @property
    def directory(self) -> Path:
        return self.model.directory

    @property
    def configured(self) -> ModelSource:
        """The directory whose config.json counts."""
        return self.model if self.model.has_config else self.tokens

    @cached_property
    def config(self) -> Any:
        """The transformers configuration; of a classifier with its number of labels, which may only be in its head."""
        config = self.configured.config
        if self.kind != CLASSIFIER or {"num_labels", "id2label"} & self.configured.values.keys():
            return config
        one, two = (_labelled(config, count) for count in (1, 2))
        held = {entry.name: tuple(entry.shape) for entry in self.model.entries}
        shapes = [_shapes(labelled) for labelled in (one, two)]
        heads = [name for name, shape in shapes[0].items() if name in held and shape != shapes[1].get(name)]
        is_one = all(held[name] == shapes[0][name] for name in heads) and (heads or not held)
        return one if is_one else config

    @cached_property
    def is_encoder(self) -> bool:
        """Whether it is a classifier that is not read at the last token of a decoder."""
        if self.kind != CLASSIFIER:
            return False
        model = _empty(self.config)
        return model is not None and not isinstance(getattr(model, "score", None), nn.Linear)

    @cached_property
    def frame(self) -> EncoderText | None:
        """The special tokens around an encoder's text; None for a decoder."""
        if not self.is_encoder:
            return None
        # as it is written, a tokenizer does not know what its class gives a model: BERT's names no types of tokens
        return EncoderText(self.tokenizer, self.tokens.tokenizer.model_input_names)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, checked to fit the template. Raises UserError."""
        remedy = f"set {self.tokenizer_key} to a directory that has one, or download its tokenizer files again"
        tokenizer = self.tokens.load_tokenizer(as_written=True, remedy=remedy)
        where, needs = f"{self.tokenizer_key}: {self.tokens.directory}", not self.is_encoder
        reward_templates.check_tokenizer(self.kind, tokenizer, where, needs)
        return tokenizer

    def check_vocabulary(self) -> None:
        """Raise UserError if the tokenizer has more tokens than the model."""
        vocabulary = self.config.get_text_config().vocab_size
        if vocabulary < len(self.tokenizer):
            raise UserError(
                f"{self.tokenizer_key}: {self.tokens.directory} has {len(self.tokenizer)} tokens, but the vocabulary "
                f"of {self.directory} is {vocabulary}; give the tokenizer that it was trained with"
            )


def _labelled(config: Any, count: int) -> Any:
    config = copy.deepcopy(config)
    config.num_labels = count
    return config


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    model = _empty(config)
    return {} if model is None else {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _empty(config: Any) -> Any:
    """Build the classifier of a configuration on the meta device; None where there is none, which is told later."""
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    except UNUSABLE:
        return None
