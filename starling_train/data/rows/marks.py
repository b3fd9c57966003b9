"""Marks of chat templates that somebody wrote into a message, where they stay text.

In data that is what it says it is there are hardly any; where there are many, a template has rendered it before.
"""

from collections.abc import Collection, Iterable

# What templates put around turns: Openchat's, ChatML's, Llama's, Gemma's, Phi's, DeepSeek's, Zephyr's, Alpaca's ...
MARKS = (
    "<|end_of_turn|>", "GPT4 Correct User:", "GPT4 Correct Assistant:", "<|im_start|>", "<|im_end|>", "[INST]",
    "[/INST]", "<<SYS>>", "<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>", "<start_of_turn>", "<end_of_turn>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>", "<|end|>", "<|eom_id|>", "<｜User｜>",
    "<｜Assistant｜>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|start|>assistant", "### Response:",
    "### Assistant:", "\nASSISTANT:", " ASSISTANT:",
)  # fmt: skip
TURNS = ("\nHuman:", "\nAssistant:")  # of HH-RLHF and Nectar; in answers they are counted by themselves
IN_PROMPTS = "rows with marks of a chat template in a prompt, kept as text"
IN_ANSWERS = "rows with marks of a chat template in an answer, kept as text"


class Marks:
    """The strings that are looked for: those of known templates, and others, such as a tokenizer's ends of turns."""

    def __init__(self, others: Iterable[str] = ()):
        self._strings = tuple(dict.fromkeys((*others, *MARKS)))

    def of(self, prompts: Collection[str], answers: Collection[str]) -> list[tuple[str, str]]:
        """Return (what was found, its first mark) for a row's prompt and for its answers."""
        found = []
        for what, texts, strings in (
            (IN_PROMPTS, prompts, (*self._strings, *TURNS)),
            (IN_ANSWERS, answers, self._strings),
        ):
            if mark := next((mark for mark in strings for text in texts if mark in text), ""):
                found.append((what, mark))
        return found
