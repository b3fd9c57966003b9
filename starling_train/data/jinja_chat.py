"""A chat template in Jinja, the tokenizer's own or one in a file: messages <-> token ids, for any chat model.

What is trained is what transformers' `apply_chat_template` gives, except that special strings in a message stay text.
How a template treats conversations is found by rendering probes, not by names: which token ends a turn, whether it
takes system messages, adds text of its own, or changes earlier turns. Values for its variables, and the date where it
asks for today's, become part of the template's text, so that a tokenizer that was written renders what was trained.
"""

import copy
import hashlib
import inspect
import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.stand_ins import StandIns

# A day that never changes, or no run could be repeated: the one that Llama 3.1's template has where it gets no date.
DATE = date(2024, 7, 26)
DATE_FORMAT = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>.*?)(?P=quote)""")
PROBE = "\ufdd4\ufdd5"  # text that neither a template nor a user has: reserved for use within a program
SYSTEM, USER, ANSWER = (
    {"role": role, "content": text} for role, text in (("system", "Short."), ("user", "Hi"), ("assistant", "Yes"))
)
REASONED = {"role": "assistant", "content": "<think>\nA thought\n</think>\n\nYes"}
# what expressions in a template raise, beside its own errors
FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class TemplateRefusal(UserError):
    """A chat template does not take a conversation."""


class JinjaTemplate:
    """A tokenizer with a template in Jinja.

    text: the template as it is rendered and written, with its variables' values and the date put in.
    end_of_turn: the id that training puts behind an answer. end_ids: every id that ends one. pad_id: none of them.
    takes_system: whether it takes system messages.
    keeps_reasoning: whether all of an answer that reasons is rendered; False where a part of it is left out.
    notes: what a user may not expect of it, in a few words each.
    """

    stop_strings: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any, text: str, values: dict[str, Any], ends: Iterable[int], source: str):
        """Look the template over. Raises UserError, naming `source`, for one that cannot be trained with.

        tokenizer: the policy's; its chat template becomes the one that is rendered.
        text: of the template.
        values: `model.template_kwargs`.
        ends: further ids that end an answer, `generation_config.eos_token_id`.
        source: a key and a path, for messages.
        """
        self.tokenizer, self._source = tokenizer, source
        self.notes: list[str] = []
        self.text = text
        self._check_syntax()
        self._put_in(values)
        self._stand_ins = StandIns(tokenizer)
        try:
            self._find_end()
        except TemplateRefusal as error:
            raise UserError(f"{source}: a question and its answer cannot be rendered: {error}; repair it") from error
        self.end_ids = frozenset([self.end_of_turn, *set(ends).intersection(tokenizer.get_vocab().values())])
        self.pad_id = self._find_pad()
        self._stand_ins = StandIns(tokenizer, self._around_turns())
        if not tokenizer.is_fast:
            self._check_kept_apart()
        self._find_lead()
        self.takes_system = self.refusal([SYSTEM, USER]) is None
        said = None if self.refusal([USER, REASONED]) else self.decode(self.answered([USER, REASONED])[1])
        self.keeps_reasoning = said is None or "A thought" in said
        self._look_over()
        tokenizer.chat_template = self.text

    # messages -> ids

    def prompt(self, messages: Sequence[dict]) -> list[int]:
        """Return the token ids up to where the assistant answers. Raises TemplateRefusal."""
        hidden, written = self._stand_ins.hide(messages)
        return self._stand_ins.encode(self._render(hidden, True), written)

    def answered(self, messages: Sequence[dict]) -> tuple[list[int], list[int]]:
        """Split a conversation that ends with an answer into (prompt ids, answer ids); its end of turn is the last id.

        The prompt is what generation sees, the answer what the template has behind it. Where the tokenizer joins the
        last character of the one with the first of the other, the answer is tokenised by itself. Raises
        TemplateRefusal.
        """
        hidden, written = self._stand_ins.hide(messages)
        before = self._render(hidden[:-1], True)
        behind = self._behind(before, hidden)
        prompt = self._stand_ins.encode(before, written)
        answer = self._stand_ins.encode(before + behind, written)
        if answer[: len(prompt)] == prompt:
            answer = answer[len(prompt) :]
        else:
            answer = self._stand_ins.encode_behind(before, behind, written)
        if self.end_of_turn in answer:
            answer = answer[: answer.index(self.end_of_turn)]
        return prompt, [*answer, self.end_of_turn]

    def plain(self, text: str) -> list[int]:
        """Return the ids of plain text, BOS first where the tokenizer itself puts one in front."""
        bos = [self.tokenizer.bos_token_id]
        first = self.tokenizer("a").input_ids[:1]
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else []
        return [*(bos if first == bos else []), *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return what the assistant said: no special tokens, and nothing that the template puts around an answer."""
        text = self._decode(ids)
        return text.removeprefix(self._lead).removesuffix(self._tail if ids and ids[-1] in self.end_ids else "")

    def refusal(self, messages: Sequence[dict]) -> str | None:
        """Return why the template does not take a conversation; None where it does."""
        try:
            self._render(messages, messages[-1]["role"] != "assistant")
        except TemplateRefusal as error:
            return str(error)
        return None

    # what is written

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer with the template that is trained with; its eos token is the one that ends a turn."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.eos_token = self._string(self.end_of_turn)
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id in self.end_ids:
            tokenizer.pad_token = self._string(self.pad_id)
        scheme = getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None)
        if scheme is not None:  # see `openchat.save_tokenizer`
            tokenizer.init_kwargs["legacy"] = scheme == "always"
        tokenizer.save_pretrained(str(directory))

    def identity(self) -> dict[str, str]:
        """Return what is not in the tokenizer's files: the template, which may come from elsewhere, as a hash."""
        return {"template": hashlib.sha256(self.text.encode()).hexdigest()}

    def described(self) -> str:
        """Return in a line which tokens end an answer, and what a user may not expect."""
        ends = [self.end_of_turn, *sorted(self.end_ids - {self.end_of_turn})]
        return "; ".join([f"an answer ends with {' or '.join(map(self._string, ends))}", *self.notes])

    # rendering

    def _render(self, messages: Sequence[dict], generation: bool) -> str:
        return self._rendered(self.text, messages, generation)

    def _rendered(self, text: str, messages: Sequence[dict], generation: bool, **values: Any) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation, chat_template=text, **values
            )
        except (TemplateError, *FAILURES) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise TemplateRefusal(f"the chat template refuses it ({reason[0]})") from error

    def _renderings(self, text: str, **values: Any) -> list[str | None]:
        """Render some conversations; None where the template refuses one."""
        renderings: list[str | None] = []
        for messages in ([USER], [SYSTEM, USER], [USER, ANSWER], [USER, ANSWER, USER], [USER, REASONED, USER]):
            try:
                renderings.append(self._rendered(text, messages, messages[-1] is USER, **values))
            except TemplateRefusal:
                renderings.append(None)
        return renderings

    def _behind(self, before: str, messages: Sequence[dict]) -> str:
        """Return what the template renders from where the last message, an answer, begins; its turn's end included."""
        whole = self._render(messages, False)
        if not whole.startswith(before):  # the generation prompt is not how an answer begins, e.g. for reasoning
            probe = [*messages[:-1], {**messages[-1], "content": PROBE}]
            before = self._render(probe, False).rpartition(PROBE)[0]
        text = whole[len(before) :] if whole.startswith(before) else messages[-1]["content"]
        return text if self._has_end else text.removesuffix(self._footer)

    def _decode(self, ids: Sequence[int]) -> str:
        # Decoded behind a colon, because some tokenizers drop a leading space by themselves and some do not.
        tokenizer = self.tokenizer
        colon = tokenizer(":", add_special_tokens=False).input_ids
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        said = [index for index in ids if index not in self.end_ids]  # not every end is marked as special
        return tokenizer.decode([*colon, *said], **options)[len(tokenizer.decode(colon, **options)) :]

    def _string(self, index: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(index)

    # looking the template over

    def _check_syntax(self) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._render([USER], True)
        except TemplateRefusal as error:
            if isinstance(error.__cause__, TemplateSyntaxError):
                wrong = error.__cause__
                raise UserError(
                    f"{self._source}: the chat template is not Jinja (line {wrong.lineno}: {wrong.message}); repair it"
                ) from error

    def _put_in(self, values: dict[str, Any]) -> None:
        """Write values for the template's variables into its text, and a fixed date where it asks for today's."""
        taken = inspect.signature(self.tokenizer.apply_chat_template).parameters
        for name in map(str, values):
            if name in taken or name == "messages" or not re.search(rf"\b{re.escape(name)}\b", self.text):
                raise UserError(
                    f"model.template_kwargs: the chat template has no variable '{name}' to set; leave it out"
                )
        set_values = "".join(
            f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}\n" for name, value in values.items()
        )
        formats = self._date_formats(set_values + self.text)
        dates = [_date_macro({form: day.strftime(form) for form in formats}) for day in (DATE, date(2001, 2, 3))]
        fixed, other = (self._renderings(macro + set_values + self.text) for macro in dates)
        pinned = dates[0] if fixed != other else ""
        if values and self._renderings(pinned + self.text, **values) != self._renderings(
            pinned + set_values + self.text
        ):
            raise UserError(
                f"model.template_kwargs: {', '.join(map(str, values))} cannot be written into the chat template, which "
                "sets what it is given by itself; give a template that has it: model.template=FILE.jinja"
            )
        if pinned:
            self.notes.append(f"where it asks for today's date it gets {DATE:%d %B %Y}, in what is written too")
        self.text = pinned + set_values + self.text

    def _date_formats(self, text: str) -> list[str]:
        """List the formats in which a template asks for today's date: written in the call, or made by expressions."""
        written = [match["format"] for match in DATE_FORMAT.finditer(text)]
        echo = f"{{%- macro strftime_now(form) -%}}{PROBE}{{{{ form }}}}{PROBE}{{%- endmacro %}}\n"
        renderings = filter(None, self._renderings(echo + text))
        made = [form for rendering in renderings for form in rendering.split(PROBE)[1::2]]
        return list(dict.fromkeys([*written, *made]))

    def _find_end(self) -> None:
        """Find the token behind an answer by rendering a probe; the tokenizer's eos token where there is none."""
        question = self._render([USER], True)
        whole = self._render([USER, {"role": "assistant", "content": PROBE}], False)
        before, found, behind = whole.rpartition(PROBE)
        if not found:
            raise UserError(f"{self._source}: the chat template leaves out the assistant's answer; give another one")
        if not before.startswith(question):
            self.notes.append("what it puts in front of a new answer is not in front of a given one")
        elif before[len(question) :].strip() and self._render([USER], False) == question:
            raise UserError(
                f"{self._source}: the chat template has no generation prompt: {before[len(question) :]!r} must stand "
                "where the assistant answers; add it behind {% if add_generation_prompt %}"
            )
        ends = sorted(
            (behind.index(token.content), -len(token.content), index)
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.content.strip() and token.content in behind and index != self.tokenizer.unk_token_id
        )
        self._has_end = bool(ends) and not behind[: ends[0][0]].strip()
        self._footer = behind
        eos = self.tokenizer.eos_token_id
        if not self._has_end and eos is None:
            raise UserError(
                f"{self._source}: no token ends an answer: the chat template has none behind it, and the tokenizer no "
                "eos token; give a template that ends an answer: model.template=FILE.jinja"
            )
        self.end_of_turn: int = ends[0][2] if self._has_end else eos
        if not self._has_end:
            self.notes.append(f"it has no token behind an answer: {self.tokenizer.eos_token} is put there")
        if "eos_token" in self.text and eos not in (None, self.end_of_turn):
            # A written tokenizer's eos token ends a turn, or servers would not stop there; the template means this one.
            self.text = f"{{%- set eos_token = {self.tokenizer.eos_token!r} %}}\n{self.text}"

    def _find_pad(self) -> int:
        """Choose the id that fills up shorter sequences: one that no answer ends with."""
        tokenizer = self.tokenizer
        special = sorted(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *special, *range(len(self.end_ids) + 1)]
        return next(index for index in candidates if index is not None and index not in self.end_ids)

    def _around_turns(self) -> set[int]:
        """Find the added tokens around turns, whether the tokenizer calls them special or not.

        Tags that are closed again, such as those around a thought, are an answer's: it may bring them itself.
        """
        added = {index: token.content for index, token in self.tokenizer.added_tokens_decoder.items()}
        tags = {text for text in added.values() if {f"</{text[1:]}", f"<{text[2:]}"}.intersection(added.values())}
        talks = [talk for talk in ([USER], [USER, ANSWER, USER]) if self.refusal(talk) is None]
        ids = {index for talk in talks for index in self._stand_ins.encode(self._render(talk, False), {})}
        return {self.end_of_turn, *(i for i in ids if i in added and added[i].strip() and added[i] not in tags)}

    def _check_kept_apart(self) -> None:
        """Raise UserError for a tokenizer that makes a special token of what somebody wrote."""
        for index in sorted(self._stand_ins.ids - {self.tokenizer.unk_token_id}):
            hidden, written = self._stand_ins.hide([{"role": "user", "content": self._string(index)}])
            if index in self._stand_ins.encode(hidden[0]["content"], written):
                raise UserError(
                    f"{self._source}: {self._string(index)!r} written by a user becomes the special token; use a fast "
                    "tokenizer"
                )

    def _find_lead(self) -> None:
        """Find the text that template and tokenizer put around an answer: a space, a newline, an empty thought."""
        said = self._decode(self.answered([USER, ANSWER])[1])
        self._lead, found, self._tail = said.partition(ANSWER["content"])
        if not found:
            self._lead = self._tail = ""

    def _look_over(self) -> None:
        """Note what the template does to conversations that a user may not expect."""
        if not self.takes_system:
            self.notes.append("it refuses system messages")
        if not self.keeps_reasoning:
            self.notes.append("it leaves the reasoning out of answers: what is trained has none")
        for kind, answer in (("of several turns", ANSWER), ("whose earlier answers reason", REASONED)):
            talk = [{**USER, "content": PROBE}, answer, {**USER, "content": PROBE}]
            if (reason := self.refusal(talk)) is not None:
                self.notes.append(f"conversations {kind}: {reason}")
                return
            if answer is ANSWER and self._puts_in_front(talk):
                self.notes.append("it puts text of its own, such as a system message, in front of a conversation")
            so_far = [index for part in self.answered(talk[:2]) for index in part]
            if self.prompt(talk)[: len(so_far)] != so_far:
                self.notes.append(f"it changes earlier turns of conversations {kind}: every row is as it renders it")
                return

    def _puts_in_front(self, talk: Sequence[dict]) -> bool:
        """Whether more stands in front of the first user's turn than what begins each user's turn."""
        first, second, *_ = self._render(talk, True).removeprefix(self.tokenizer.bos_token or "").split(PROBE)
        pairs = enumerate(zip(reversed(first), reversed(second), strict=False))
        header = next((length for length, (one, other) in pairs if one != other), min(len(first), len(second)))
        return bool(first[: len(first) - header].strip())


def _date_macro(dates: dict[str, str]) -> str:
    """Return a template's beginning that makes `strftime_now` give these dates, by format."""
    return f"{{%- macro strftime_now(form) -%}}{{{{ {dates!r}[form] }}}}{{%- endmacro %}}\n"
