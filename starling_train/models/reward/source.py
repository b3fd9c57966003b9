"""A reward model's directory, and its tokenizer's if that is another one, opened once."""

from functools import cached_property
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.data import reward_templates
from starling_train.models.source import ModelSource


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
    ) -> "RewardSource":
        """Open both. weights=False fetches configuration and tokenizer only. Raises UserError for what is missing."""
        model = ModelSource.open(path, key, revision, weights=weights, needs_config=False)
        tokens = ModelSource.open(tokenizer, tokenizer_key, weights=False, needs_config=False) if tokenizer else model
        if not (model.has_config or tokens.has_config):
            raise UserError(
                f"{key}: {model.directory} has no config.json; copy the base model's there (Llama-2-7b-chat's, "
                "Yi-34B-Chat's)"
            )
        return cls(kind, model, tokens, tokenizer_key)

    @classmethod
    def of(cls, config: RewardConfig, *, weights: bool = True) -> "RewardSource":
        """Open what the section `reward` names."""
        return cls.open(config.kind, config.path, config.tokenizer, weights=weights)

    @property
    def directory(self) -> Path:
        return self.model.directory

    @property
    def configured(self) -> ModelSource:
        """The directory whose config.json counts."""
        return self.model if self.model.has_config else self.tokens

    @property
    def config(self) -> Any:
        return self.configured.config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, checked to fit the template. Raises UserError."""
        remedy = f"set {self.tokenizer_key} to a directory that has one, or download its tokenizer files again"
        tokenizer = self.tokens.load_tokenizer(as_written=True, remedy=remedy)
        reward_templates.check_tokenizer(self.kind, tokenizer, f"{self.tokenizer_key}: {self.tokens.directory}")
        return tokenizer

    def check_vocabulary(self) -> None:
        """Raise UserError if the tokenizer has more tokens than the model."""
        if self.config.vocab_size < len(self.tokenizer):
            raise UserError(
                f"{self.tokenizer_key}: {self.tokens.directory} has {len(self.tokenizer)} tokens, but the vocabulary "
                f"of {self.directory} is {self.config.vocab_size}; give the tokenizer that it was trained with"
            )
