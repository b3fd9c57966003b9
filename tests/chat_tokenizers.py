"""Small real tokenizers of the kinds that chat models have, and short templates built like the published ones."""

import json
import string
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LEARNED = [
    "system user assistant model What is the capital of France? It is Paris. You are a helpful assistant. hello world",
    "[INST] [/INST] think reasoning Be brief. Answer in one word. Again one two three",
    *(" ".join(string.printable), string.printable),
]


def tokenizer(
    kind: str, special: tuple[str, ...], plain: tuple[str, ...] = (), *, rstrip: bool = False, **names: str | None
) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from a few sentences.

    kind: bytes (byte-level BPE, as GPT-2's), always or first (Llama's pieces, a space put in front of all text behind a
        special token, or of the first only).
    special: its special tokens; `<unk>` is one more for Llama's kind.
    plain: added tokens that are not marked as special.
    rstrip: special tokens take the white space behind them along, as Phi-3's do.
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
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False, rstrip=rstrip) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def _as_pieces(learned: Tokenizer) -> Tokenizer:
    """Make ordinary pieces of the bytes, as Llama's are, instead of special tokens."""
    described = json.loads(learned.to_str())
    described["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(described))


@dataclass(frozen=True)
class Family:
    """A kind of chat model.

    kind, special, names: of its `tokenizer`.
    template: with the structure of the published one.
    ends: what its generation_config.json names.
    end: the token behind an answer.
    takes_system: whether the template takes system messages.
    values: `template_kwargs`.
    """

    kind: str
    special: tuple[str, ...]
    template: str
    end: str
    ends: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    takes_system: bool = True
    values: dict = field(default_factory=dict)
    rstrip: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer(
            self.kind, self.special, self.plain, rstrip=self.rstrip, chat_template=self.template, **self.names
        )


_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}"
    "{% endif %}" + _CHATML
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system }}"
    "{{ '<|eot_id|>' }}" + _LLAMA3.removeprefix("{{ bos_token }}")
)
# Earlier answers lose their reasoning; without thinking an empty thought stands where an answer begins.
_QWEN3 = (
    "{%- set last = namespace(user=0) -%}"
    "{%- for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor -%}"
    "{%- for message in messages %}"
    "{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.index0 > last.user %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}"
    "{%- endif %}"
    "{{- content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
_GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_LLAMA2 = (
    _MISTRAL.replace("+ eos_token", "+ ' ' + eos_token")
    .replace("'[INST] '", "bos_token + '[INST] '")
    .replace("{{ bos_token }}", "")
)
_PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The generation prompt opens a thought that a given answer does not have.
_R1 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}{{ bos_token + ns.system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# The last answer ends with another token than the earlier ones, and special tokens stand in front of it.
_HARMONY = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_BARS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_EOT = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_PHI = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_GEMMA_TURNS = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
FAMILIES = {
    "llama3": Family("bytes", _HEADERS, _LLAMA3, "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"), _EOT),
    "llama3_dated": Family("bytes", _HEADERS, _DATED, "<|eot_id|>", ("<|end_of_text|>",), _EOT),
    "qwen2": Family(
        "bytes", _BARS, _WITH_DEFAULT, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "smollm2": Family(
        "bytes", _BARS, _WITH_DEFAULT, "<|im_end|>", ("<|im_end|>",),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
         "unk_token": "<|endoftext|>"},
    ),
    "qwen3": Family(
        "bytes", _BARS, _QWEN3, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), {"eos_token": "<|im_end|>"},
        ("<think>", "</think>"),
    ),
    "qwen3_no_thinking": Family(
        "bytes", _BARS, _QWEN3, "<|im_end|>", ("<|endoftext|>",), {"eos_token": "<|im_end|>"},
        ("<think>", "</think>"), values={"enable_thinking": False},
    ),
    "gemma": Family(
        "first", _GEMMA_TURNS, _GEMMA, "<end_of_turn>", ("<eos>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}, ("\n\n", "▁▁"), takes_system=False,
    ),
    "mistral": Family("always", ("<s>", "</s>"), _MISTRAL, "</s>", ("</s>",), _LLAMA, takes_system=False),
    "mistral_special": Family(
        "first", ("<s>", "</s>", "[INST]", "[/INST]"), _MISTRAL, "</s>", ("</s>",), _LLAMA, takes_system=False
    ),
    "llama2": Family("always", ("<s>", "</s>"), _LLAMA2, "</s>", ("</s>",), _LLAMA, takes_system=False),
    "phi3": Family("always", _PHI, _PHI3, "<|end|>", ("<|endoftext|>", "<|end|>"),
                   {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
    "phi3_rstrip": Family("always", _PHI, _PHI3, "<|end|>", ("<|endoftext|>", "<|end|>"),
                          {"bos_token": "<s>", "eos_token": "<|endoftext|>"}, rstrip=True),
    "r1": Family(
        "bytes", ("<bos>", "<eos>"), _R1, "<eos>", ("<eos>",), {"bos_token": "<bos>", "eos_token": "<eos>"},
        ("<|User|>", "<|Assistant|>", "<think>", "</think>"),
    ),
    "harmony": Family(
        "bytes", ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"), _HARMONY,
        "<|return|>", ("<|return|>", "<|call|>"), {"eos_token": "<|return|>"},
    ),
    "chatml_on_llama": Family(
        "always", ("<s>", "</s>", "<|im_end|>"), _CHATML, "<|im_end|>", (), _LLAMA, ("<|im_start|>",)
    ),
    "zephyr": Family("always", ("<s>", "</s>"), _ZEPHYR, "</s>", ("</s>",), _LLAMA),
    "plain": Family("bytes", ("<s>", "</s>"), _PLAIN, "</s>", (), _LLAMA),
}  # fmt: skip
