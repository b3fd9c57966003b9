"""A reward model: conversations in, scores out, and how it is loaded."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.config.sections import ScorerConfig
from starling_train.core.micro_batches import Beginning, cut_by_tokens, cut_packed, overhead_of
from starling_train.core.padding import padded
from starling_train.data import reward_templates
from starling_train.data.encoder_text import EncoderText
from starling_train.models import quantisation
from starling_train.models.budget import Budget
from starling_train.models.families.positions import alone_above, check_dynamic
from starling_train.models.reward import batching, loading
from starling_train.models.reward.host_weights import HostWeights
from starling_train.models.reward.net import ClassifierNet, PackedNet, RewardNet
from starling_train.models.reward.reading import Reader
from starling_train.models.reward.source import RewardSource


class RewardModel:
    """Scores conversations, longest first, under a budget of tokens a forward pass, which falls when memory runs out.

    `truncated` counts answers that lost their beginning, `shortened` all conversations that were cut.
    """

    may_leave_out, mark = False, None
    facts: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        net: RewardNet | ClassifierNet,
        tokenizer,
        kind: str,
        *,
        device: str | torch.device = "cpu",
        position: str = "last_token",
        max_length: int = 2048,
        tokens_per_batch: int = 16384,
        trailing_newline: bool = False,
        skipped_id: int | None = None,
        frame: EncoderText | None = None,
        home: HostWeights | None = None,
        section: str = "reward",
    ) -> None:
        """Wrap a network.

        home: where the network's weights are while it does not score; None = on the device.
        section: where its keys are, for messages.
        skipped_id: a token id that the head skips at the end of a conversation (see `read_at`). frame: of an encoder.
        """
        assert position in ("last_token", "card"), position
        self.net, self.tokenizer, self.kind, self.device = net.eval(), tokenizer, kind, device
        self.position, self.max_length = position, max_length
        self.budget = Budget(f"{section}.tokens_per_batch", tokens_per_batch)
        self.skipped_id = skipped_id
        self._reader = Reader(kind, tokenizer, max_length, trailing_newline, frame)
        size = sum(parameter.numel() for parameter in net.parameters())
        layers = getattr(net.config, "num_hidden_layers", 12)
        self._overhead = overhead_of(size, layers, torch.device(device).type)
        # the card's way reads from padding, which must then exist
        self._home = home
        with self._on_device():
            way = batching.way_of(net, self._pad_id()) if position == "last_token" else "padded"
        self._packed = PackedNet(net) if way in ("shared", "packed") and isinstance(net, RewardNet) else None
        self._shares = way == "shared"
        self._is_alone = way == "alone"
        self._alone_above = alone_above(net.config)

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Score conversations, in order; each ends with the assistant's answer.

        Neighbours that are answers to the same prompt have it computed once, where the network and the template allow.
        """
        encoded = [self.encode(messages) for messages in conversations]
        return self.score_ids(encoded, [messages[:-1] for messages in conversations])

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Score as `score`, with the error instead of a score for a conversation that the template cannot take."""
        results: list[float | UserError] = [0.0] * len(conversations)
        encoded: dict[int, list[int]] = {}
        for index, messages in enumerate(conversations):
            try:
                encoded[index] = self.encode(messages)
            except UserError as error:
                results[index] = error
        for index, score in zip(encoded, self.score_ids(list(encoded.values())), strict=True):
            results[index] = score
        return results

    def score_ids(self, encoded: Sequence[list[int]], askers: Sequence[Any] | None = None) -> list[float]:
        """Score each of `encode`'s results, in order. askers: equal for those that answer the same prompt."""
        if not encoded:
            return []
        beginnings = None
        if askers is not None and self._shares:
            beginnings = batching.common_beginnings(askers, encoded, [self.read_at(ids) for ids in encoded])
        with self._on_device():
            return self.budget.halving(lambda tokens: self._score_ids(encoded, tokens, beginnings))

    def _on_device(self) -> AbstractContextManager[None]:
        return self._home.on_device() if self._home else nullcontext()

    @property
    def tokens_per_batch(self) -> int:
        return self.budget.amount

    def _score_ids(
        self, encoded: Sequence[list[int]], budget: int, beginnings: Sequence[Beginning] | None
    ) -> list[float]:
        scores = [0.0] * len(encoded)
        for group in self._groups([len(ids) for ids in encoded], budget, beginnings):
            with torch.inference_mode():
                common = [beginnings[index] for index in group] if beginnings else None
                values = self._forward([encoded[index] for index in group], common)
            for index, value in zip(group, values.tolist(), strict=True):
                scores[index] = value
        return scores

    def _groups(
        self, lengths: list[int], budget: int, beginnings: Sequence[Beginning] | None = None
    ) -> list[list[int]]:
        """Group indices of sequences that go through the model together; who would change the others goes alone."""
        alone = [index for index, length in enumerate(lengths) if length > self._alone_above]
        together = [index for index, length in enumerate(lengths) if length <= self._alone_above]
        shorter = [lengths[index] for index in together]
        if self._packed is None:
            cut = cut_by_tokens(shorter, budget, self._overhead)
        else:
            cut = cut_packed(shorter, budget, beginnings and [beginnings[index] for index in together])
        return [[index] for index in alone] + [[together[index] for index in group] for group in cut]

    def _forward(self, encoded: list[list[int]], beginnings: Sequence[Beginning] | None = None) -> Tensor:
        if self._is_alone:
            return torch.cat([self.net(**self._inputs([ids])) for ids in encoded])
        if self._packed is None:
            return self.net(**self._inputs(encoded))
        layout = batching.laid_out(encoded, [self.read_at(ids) for ids in encoded], beginnings)
        ids, read_at = (torch.tensor(numbers).to(self.device) for numbers in (layout.ids, layout.reads))
        return self._packed(ids, layout.packing(self.device), read_at)

    def encode(self, messages: list[dict]) -> list[int]:
        """Encode messages in the model's template; above max_length the beginning is cut (not BOS) and counted."""
        return self._reader.encode(messages)

    @property
    def truncated(self) -> int:
        """Answers so far that lost their beginning."""
        return self._reader.truncated

    @property
    def shortened(self) -> int:
        """Conversations so far that were cut, within their prompt or further."""
        return self._reader.shortened

    def _inputs(self, encoded: list[list[int]]) -> dict[str, Tensor]:
        card = self.position == "card"
        width = max(map(len, encoded)) + card
        input_ids = torch.full((len(encoded), width), self._pad_id())
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(encoded):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs["read_at"] = torch.tensor([self.read_at(ids) for ids in encoded])
        if (frame := self._reader.frame) and frame.has_types:
            inputs["token_type_ids"] = padded([frame.types(ids) for ids in encoded])[0]
        if card:
            inputs["position_ids"] = self._card_positions(attention_mask)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def read_at(self, ids: list[int]) -> int:
        """Return the index that the head reads.

        transformers' classifiers skip ids equal to the config's pad token at the end, even where that is the
        real end of turn; they were trained like that.
        """
        if self.position == "card" and len(ids) < self.max_length:
            return len(ids)
        return max((index for index, token in enumerate(ids) if token != self.skipped_id), default=0)

    def _card_positions(self, attention_mask: Tensor) -> Tensor:
        """Put padding at max_length - 1: only the token there counts, because no position attends to the others."""
        positions = torch.arange(attention_mask.shape[1]).repeat(len(attention_mask), 1)
        return torch.where(attention_mask == 1, positions, self.max_length - 1)

    def _pad_id(self) -> int:
        """Choose a padding id.

        The card pads with `<unk>`; a classifier that reads by itself finds its padding by the configured id; elsewhere
        padding is never seen and any id will do.
        """
        configured = self.net.config.pad_token_id if isinstance(self.net, ClassifierNet) else None
        choices = (configured, self.tokenizer.unk_token_id, self.tokenizer.pad_token_id)
        return next((i for i in choices if i is not None), 0)


def load_reward_model(
    kind: str,
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    position: str = "last_token",
    max_length: int = 2048,
    tokens_per_batch: int = 16384,
    load_in: str | None = None,
    trailing_newline: bool = False,
) -> RewardModel:
    """Load a reward model from a directory or hub id.

    tokenizer: directory of its tokenizer (and of config.json, where `path` has none); `path` if None.
    device: one device, or auto to spread the transformer over all GPUs.
    load_in: 8bit or 4bit (GPUs, bitsandbytes).

    The other parameters are keys of the configuration section `reward`. Raises UserError that names the file, and the
    tensors that are missing, unknown or misshapen.
    """
    if kind not in reward_templates.KINDS:
        raise UserError(f"reward.kind: {kind!r} is unknown; use one of {', '.join(reward_templates.KINDS)}")
    settings = ScorerConfig(
        kind=kind,
        position=position,
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
        load_in=load_in,
        trailing_newline=trailing_newline,
    )
    return load(RewardSource.open(kind, path, tokenizer), settings, dtype=dtype, device=device)


def load(
    source: RewardSource,
    config: ScorerConfig,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device,
) -> RewardModel:
    """Load the reward model of `source`. dtype, device: see `load_reward_model`; config: the section `reward`."""
    kind = source.kind
    if config.position == "card" and kind != "starling_7b":
        raise UserError(f"reward.position: card is Starling-RM-7B-alpha's, not {kind}'s; use last_token")
    options = quantisation.loading_options(dtype, device, config.load_in)
    source.check_vocabulary()
    check_dynamic(source.config, config.max_length, "reward.max_length")
    if kind == "sequence_classification":
        net = loading.load_classifier(source.directory, copy.deepcopy(source.config), options)
    else:
        net = loading.load_starling(kind, source.directory, copy.deepcopy(source.config), options)
    home = HostWeights(net, torch.device(device)) if config.offload else None
    return RewardModel(
        net if home or "device_map" in options else net.to(device),
        source.tokenizer,
        kind,
        device="cuda" if device == "auto" else device,
        position=config.position,
        max_length=config.max_length,
        tokens_per_batch=config.tokens_per_batch,
        trailing_newline=config.trailing_newline,
        skipped_id=source.config.get_text_config().pad_token_id if kind == "sequence_classification" else None,
        frame=source.frame,
        home=home,
        section=config.section,
    )
