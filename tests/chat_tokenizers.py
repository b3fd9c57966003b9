"""Small real tokenizers of the kinds that chat models have, and short templates built like the published ones."""

import json
import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LEARNED = [
    "system user assistant model What is the capital of France? It is Paris. You are a helpful assistant. hello world",
    "[INST] [/INST] think reasoning Be brief. Answer in one word. Again one two three",
    *(" ".join(string.printable), string.printable),
]


def tokenizer(
    kind: str, special: tuple[str, ...], plain: tuple[str, ...] = (), **names: str | None
) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from a few sentences.

    kind: bytes (byte-level BPE, as GPT-2's), always or first (Llama's pieces, a space put in front of all text behind a
        special token, or of the first only).
    special: its special tokens; `<unk>` is one more for Llama's kind.
    plain: added tokens that are not marked as special.
    names: bos_token, eos_token, pad_token, chat_template.
    """
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(LEARNED * 5, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        # learned without the pieces' marks first: special tokens of the trainer keep their places
        backend.train_from_iterator(LEARNED * 5, trainers.BpeTrainer(vocab_size=700, special_tokens=pieces))
        backend = _as_pieces(backend)
        special = ("<unk>", *special)
        names = {"unk_token": "<unk>", **names}
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def _as_pieces(learned: Tokenizer) -> Tokenizer:
    """Make ordinary pieces of the bytes, as Llama's are, instead of special tokens."""
    described = json.loads(learned.to_str())
    described["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(described))
