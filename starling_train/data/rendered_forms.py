"""The chat templates of common models as grammars: what stands around each turn of a rendered conversation.

A grammar reads text that came from token ids (`tokenizer.decode`): behind a special token a tokenizer of Llama's kind
puts a space, and one whose special tokens take white space along leaves a newline out. All else must stand as the
template has it.
"""

import re
from dataclasses import dataclass, field

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
BOS = ("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<|startoftext|>")
PADS = ("<unk>", "<pad>", "[PAD]", "<|pad_0|>", "<|endoftext|>", "<|end_of_text|>", "<|finetune_right_pad_id|>")
ENDS = (
    "</s>", "<eos>", "<|end_of_turn|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|return|>", "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
)  # fmt: skip


def any_of(tokens: tuple[str, ...]) -> str:
    """Return a pattern of one of these texts."""
    return f"(?:{'|'.join(map(re.escape, tokens))})"


@dataclass(frozen=True)
class Form:
    """One template. All but names are regular expressions.

    user, assistant: what begins a turn of each.
    system: likewise; None where a system message has no mark.
    ends_user, ends_system: what ends their turns.
    ends_assistant: likewise, with another turn behind it.
    stops: the token that ends an answer, as a policy says it; another one, or none, where it was cut.
    before: what a system message without a mark ends with; None: there is none of that kind.
    marks: what no turn contains, or it would be another turn; empty: the beginnings of turns.
    lead: what the template or the tokenizer has between a prompt and an answer.
    last_lead: likewise, of the last answer alone.
    defaults: system messages that the template puts in by itself.
    prelude: what it puts in front of every system message.
    open_assistant: what a prompt ends with, where that is not all that begins an answer; `lead` is then required.
    """

    name: str
    user: str
    assistant: str
    ends_user: str
    ends_assistant: str
    stops: tuple[str, ...]
    system: str | None = None
    ends_system: str = ""
    before: str | None = None
    marks: str = ""
    lead: str = ""
    last_lead: str = ""
    defaults: tuple[str, ...] = ()
    prelude: str = ""
    open_assistant: str = ""
    compiled: dict[str, re.Pattern] = field(default_factory=dict, compare=False)

    @property
    def is_plain(self) -> bool:
        """Whether no special token stands around a user's turn."""
        return "<" not in self.user + self.assistant + self.ends_user

    def pattern(self, name: str) -> re.Pattern:
        """Return one of the expressions, compiled."""
        if name not in self.compiled:
            text = getattr(self, name)
            if name == "marks":
                text = text or "|".join(filter(None, (self.user, self.assistant, self.system)))
            self.compiled[name] = re.compile(text)
        return self.compiled[name]


def _headed(
    name: str,
    start: str,
    end: str,
    stop: str,
    marks: str,
    *,
    model: str = "assistant",
    last_lead: str = "",
    defaults: tuple[str, ...] = (),
    prelude: str = "",
) -> Form:
    """Return a form whose turns all have a header with the role's name, and the same end.

    start: with ROLE in it. model: what it calls the assistant. The others: see `Form`.
    """
    system, user, assistant = (start.replace("ROLE", role) for role in ("system", "user", model))
    return Form(
        name, user=user, assistant=assistant, system=system, ends_user=end, ends_assistant=end, ends_system=end,
        stops=(stop,), marks=marks, last_lead=last_lead, defaults=defaults, prelude=prelude,
    )  # fmt: skip


_CHATML_DEFAULTS = (
    "You are a helpful assistant",
    "You are a helpful assistant.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
_ALPACA = ("Below is an instruction that describes a task. Write a response that appropriately completes the request.",)
_PREFIX = "(?:GPT4 Correct|Code|Math Correct)"
FORMS = (
    Form(
        "Openchat", user=f"{_PREFIX} User: ?", assistant=f"{_PREFIX} Assistant:", system=f"{_PREFIX} System: ?",
        ends_user=r"<\|end_of_turn\|> ?", ends_system=r"<\|end_of_turn\|> ?", ends_assistant=r"<\|end_of_turn\|> ?",
        stops=("<|end_of_turn|>",), before=r"<\|end_of_turn\|> ?", lead=" ?",
        marks=rf"{_PREFIX} (?:User|Assistant|System):|<\|end_of_turn\|>",
    ),
    _headed(
        "ChatML", r"<\|im_start\|> ?ROLE\n", r"<\|im_end\|> ?\n", "<|im_end|>", r"<\|im_(?:start|end)\|>",
        defaults=_CHATML_DEFAULTS, last_lead=f"(?:{EMPTY_THOUGHT})?",
    ),
    _headed(
        "Llama-3", r"<\|start_header_id\|> ?ROLE<\|end_header_id\|> ?\n\n", r"<\|eot_id\|>", "<|eot_id|>",
        r"<\|(?:start_header_id|end_header_id|eot_id|begin_of_text)\|>",
        prelude=r"(?:Cutting Knowledge Date: [^\n]*\n)?Today Date: [^\n]*\n\n",
    ),
    _headed(
        "Gemma", r"<start_of_turn> ?ROLE\n", r"<end_of_turn> ?\n", "<end_of_turn>", r"<(?:start|end)_of_turn>",
        model="model",
    ),
    _headed(
        "Phi-3", r"<\|ROLE\|>(?: ?\n| )", r"<\|end\|>(?: ?\n)?", "<|end|>",
        r"<\|(?:system|user|assistant|end)\|>",
    ),
    _headed(
        "Zephyr", r"<\|ROLE\|> ?\n", r"</s> ?\n", "</s>", r"<\|(?:system|user|assistant)\|>|</s>",
    ),
    Form(
        "harmony", user=r"<\|start\|>user<\|message\|>", system=r"<\|start\|>system<\|message\|>",
        assistant=r"<\|start\|>assistant", open_assistant=r"<\|start\|>assistant",
        ends_user=r"<\|end\|>", ends_system=r"<\|end\|>", ends_assistant=r"<\|end\|>",
        stops=("<|return|>", "<|end|>"), lead=r"<\|channel\|>final<\|message\|>",
        marks=r"<\|(?:start|end|message|channel|return|call)\|>",
    ),
    Form(
        "DeepSeek", user="<[|｜]User[|｜]>", assistant="<[|｜]Assistant[|｜]>", ends_user="(?=<[|｜]Assistant[|｜]>)",
        ends_assistant="(?:<eos>|<｜end▁of▁sentence｜>)", stops=("<eos>", "<｜end▁of▁sentence｜>"),
        before="(?=<[|｜]User[|｜]>)", marks="<[|｜](?:User|Assistant)[|｜]>|<eos>|<｜end▁of▁sentence｜>",
    ),
    Form(
        "Llama-2", user=r"\[INST\] ?", assistant=r"\[/INST\]", ends_user=r" ?(?=\[/INST\])",
        ends_assistant=r" ?</s>[ \n]?<s> ?|</s>[ \n]?", stops=("</s>",), marks=r"\[/?INST\]|</?s>", lead=" ?",
    ),
    Form(
        "Vicuna", user="USER: ", assistant="ASSISTANT:", ends_user=r"[ \n](?=ASSISTANT:)", ends_assistant=r"</s>[ \n]?",
        stops=("</s>",), before=r"[ \n]{1,2}(?=USER: )", lead=" ?", marks="USER: |ASSISTANT:|</s>", defaults=(_VICUNA,),
    ),
    Form(
        "Alpaca", user=r"### Instruction:\n", assistant=r"### Response:", ends_user=r"\n\n(?=### Response:)",
        ends_assistant=r"(?:</s>)?\n\n(?=### Instruction:)", stops=("</s>",), before=r"\n\n(?=### Instruction:)",
        lead=r"[ \n]?", marks=r"### (?:Instruction|Response|Input):", defaults=_ALPACA,
    ),
    Form(
        "Nectar", user=r"(?:\n\n)?Human: ?", assistant=r"\n\nAssistant:", ends_user=r"(?=\n\nAssistant:)",
        ends_assistant=r"(?:</s>)?(?=\n\nHuman:)", stops=("</s>",), lead=" ?",
        marks=r"(?:\A|\n\n)(?:Human|Assistant): ?",
    ),
    *(
        Form(
            f"{user}:", user=f"{user}: ", assistant=f"{assistant}: ?", ends_user=rf"{between}(?={assistant}:)",
            ends_assistant=rf"(?:{between}|</s>\n?|<｜end▁of▁sentence｜>|<eos>)(?={user}: )",
            ends_system=rf"{between}(?={user}: )", system=system and f"{system}: ",
            stops=(*(f"{end}</s>" for end in tail), "</s>", "<｜end▁of▁sentence｜>", "<eos>", *tail),
            marks=rf"(?:\A|\n)(?:{user}|{assistant}): ?",
        )
        for user, assistant, system, between, tail in (
            ("user", "assistant", "system", r"\n\n", ("\n\n",)),
            ("User", "Assistant", "System", r"\n\n", ()),
            ("User", "Assistant", "System", r"\n", ()),
        )
    ),
)  # fmt: skip
