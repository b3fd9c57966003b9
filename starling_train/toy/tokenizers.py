"""The toy's two tokenizers, Llama's kind, small: the policy's with Openchat's added tokens, the reward model's without.

As in a Llama tokenizer, a space is '▁', one is put in front of every text (the legacy behaviour), text that no piece
covers falls back to bytes, BOS is added and EOS is not. Unlike there, every word of the toy language is one piece, and
so is the scaffolding of a function's JSON, which keeps sequences short enough for a CPU.
"""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from starling_train.data.openchat import CHAT_TEMPLATE, END_OF_TURN, PAD

_SPECIALS = ("<unk>", "<s>", "</s>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SCHEMA_WORDS = "name|description|parameters|type|dict|properties|string|integer|required"
_MARKS = r'["\[\](){}:,=]'
# A word, a run of JSON marks with the schema words between them, or one other character; each may have its space.
_PIECE = Regex(
    rf"▁?(?!:){_MARKS}+(?:▁?{_MARKS}+|(?:{_SCHEMA_WORDS})(?={_MARKS}))*|[0-9]|▁?[A-Za-z_]+|▁?[^▁A-Za-z0-9]|▁"
)


def policy_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make the policy's tokenizer: `<|end_of_turn|>` is eos, `<|pad_0|>` pads, Openchat's chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_llama_style(texts, order=1, added=(END_OF_TURN, PAD)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=END_OF_TURN,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def reward_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make the reward model's tokenizer: Llama's specials, `<unk>` pads as in Starling-RM-7B-alpha, other ids."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_llama_style(texts, order=-1, added=()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _llama_style(texts: Iterable[str], order: int, added: tuple[str, ...]) -> Tokenizer:
    """Train BPE on `texts` so that every piece becomes one token. order: 1 or -1, how the pieces are numbered."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    # far more merges than the toy language has, so that learning ends only when every piece is whole
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=100_000, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)[::order]
    names = (*_SPECIALS, *_BYTES, *pieces)
    vocabulary = {piece: index for index, piece in enumerate(names)}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (*_SPECIALS, *added)])
    return tokenizer


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return pre_tokenizers.Sequence([spaces, pre_tokenizers.Split(_PIECE, behavior="isolated")])
