"""Rendered text -> conversation, for OpenRLHF's remote reward request, which carries text and no messages.

OpenRLHF's trainer posts {"query": [...], "prompts": [...], "labels": [...]}: a query is the policy's token ids decoded,
special tokens included, in the policy's own template; a prompt is that template's text, which was not decoded. How it
becomes a conversation:

1. BOS and padding at both ends are removed.
2. The answer is what a query has behind its prompt, whatever it contains, up to the token that ends it. Spaces that
   decoding puts behind special tokens are no difference.
3. The prompt is read by the grammar of a template (`rendered_forms`), whole: every character belongs to a turn or
   stands as the template has it. Without prompts the query is, and no turn may contain a mark of the template.
4. A system message that a template puts in where there is none is not one of the conversation.

What no grammar reads is refused. A prompt with no marks at all is one message of the user. labels are not used.
"""

import re
from typing import NamedTuple

from starling_train.config.fields import UserError
from starling_train.data.conversations import with_answer
from starling_train.data.rendered_forms import BOS, EMPTY_THOUGHT, ENDS, FORMS, PADS, Form, any_of

ROLES = ("system", "user", "assistant")
# padding may be a token that ends a turn: at the beginning it stands in front of BOS, or of the first turn's own mark
LEADING = re.compile(
    rf"(?:(?:{any_of((*PADS, *ENDS, *BOS))} ?)*{any_of(BOS)} ?)?"
    rf"(?:(?:{any_of(PADS)}|<\|im_end\|>(?=<\|im_(?:start|end)\|>)|</s>(?=<\|(?:system|user)\|>|</s>)) ?)*"
)
SPECIAL = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>|</?s>|<(?:bos|eos|unk|pad)>|<(?:start|end)_of_turn>")
# what looks like a mark of some template
MARKED = re.compile(
    rf"{SPECIAL.pattern}|(?-i:\[/?[A-Z_]{{3,}}\])|<</?SYS>>|<\|?/?(?:system|user|assistant|human|bot)\|?>"
    r"|^[ \t]*(?:#+ *)?(?:system|user|human|assistant|bot) *:|^#+ *(?:instruction|response|input) *:"
    r"|(?-i:\b(?:USER|HUMAN|ASSISTANT|GPT|BOT):)|\[Round \d+\]"  # within a line, in capitals; ChatGLM's
    r"|\[\|(?:system|user|assistant|endofturn)\|\]|<\|[\w:]+>|<[\w:]+\|>|</?role>"
    r"|<(?:extra_id|reserved)_\d+>|<[a-z]+:[be]os>|\[e~\[|\]~!?b[\[\]]",
    re.IGNORECASE | re.MULTILINE,
)
SYSTEM_OF_LLAMA2 = re.compile(r"<<SYS>>\n(.*?)\n<</SYS>>\n\n", re.DOTALL)
OPENED = re.compile(rf"(?:{EMPTY_THOUGHT}|<think>\n?|</think>)?")


def to_conversation(query: str, prompt: str | None = None) -> list[dict]:
    """Parse a query into a conversation, the response last. Raises UserError for what cannot be read for certain."""
    if prompt is None:
        start = _end(LEADING, query)
        turns = next(filter(None, (_whole(form, query, start) for form in FORMS)), None)
        if turns is None:
            raise UserError(
                "a query in no known template, or with marks of it inside a message, or without its beginning; send "
                "prompts as well, or use POST /score"
            )
        return turns
    form, messages, missing = _prompt_turns(prompt)
    answer = _behind(query, prompt)
    if answer is None:
        return _confirmed(form, query, messages)
    if missing and (space := re.match(r" ?\n| ", answer)):
        answer = answer[space.end() :]
    if form is None:
        return with_answer(messages, _without_stop(answer.removeprefix(" "), ENDS))
    lead = form.pattern("lead").match(answer)
    if lead is None:
        raise UserError(f"a query whose answer does not begin as {form.name}'s template has it; use POST /score")
    return with_answer(messages, _answer(form, answer[lead.end() :], query))


def _prompt_turns(prompt: str) -> tuple[Form | None, list[dict], str]:
    """Return (its template, its messages, white space that it lacks at its end, decoded or stripped).

    Raises UserError for marks that are none of a known template.
    """
    start = _end(LEADING, prompt)
    for form in FORMS:
        for missing in ("", "\n", " "):
            turns = _turns(form, prompt + missing, start)
            if turns and turns[-1]["role"] == "assistant" and OPENED.fullmatch(turns[-1]["content"]):
                return form, _settled(form, turns[:-1]), missing
    text = prompt[start:]
    if MARKED.search(text) or not text.strip():
        raise UserError(
            "a prompt in no known template, or with marks of it inside a message, or without its beginning; use POST "
            "/score"
        )
    return None, [{"role": "user", "content": text}], ""


def _end(pattern: re.Pattern, text: str, start: int = 0) -> int:
    """Return where a pattern that matches anything ends."""
    match = pattern.match(text, start)
    return match.end() if match else start


def _behind(query: str, prompt: str) -> str | None:
    """Return what a query has behind its prompt; None if it does not begin with it."""
    query, prompt = query[_end(LEADING, query) :], prompt[_end(LEADING, prompt) :]
    if query.startswith(prompt):
        return query[len(prompt) :]
    match = re.match(_as_decoded(prompt), query)
    if match is None and prompt != prompt.rstrip():  # a tokenizer may join white space with the answer
        match = re.match(_as_decoded(prompt.rstrip()), query)
    return query[match.end() :] if match else None


def _as_decoded(text: str) -> str:
    """Return a pattern of a text as it may be after it was tokenised and decoded."""
    pattern, done = " ?", 0
    for special in SPECIAL.finditer(text):
        pattern += _after_special(text[done : special.start()], done > 0) + re.escape(special[0])
        done = special.end()
    return pattern + _after_special(text[done:], done > 0)


def _after_special(text: str, is_after: bool) -> str:
    if not is_after:
        return re.escape(text)
    space = text[: len(text) - len(text.lstrip())]
    lost = f"(?: ?{re.escape(space)}| ?)" if space else " ?"
    return lost + re.escape(text[len(space) :])


def _confirmed(form: Form | None, query: str, messages: list[dict]) -> list[dict]:
    """Read a query without its prompt, which must come out of it all the same. Raises UserError."""
    turns = _whole(form, query, _end(LEADING, query)) if form else None
    if turns is None or turns[:-1] != messages:
        raise UserError(
            "a query that does not begin with its prompt, such as one that was cut; send prompts as they stand in the "
            "queries, whole"
        )
    return turns


def _whole(form: Form, query: str, start: int) -> list[dict] | None:
    """Read a query that ends with an answer; None if the template's grammar does not. start: behind BOS and padding."""
    turns = _turns(form, query, start)
    if turns is None or turns[-1]["role"] != "assistant":
        return None
    is_bare = form.before is not None and _header(form, query, start) is None
    if is_bare and turns[0]["content"] not in form.defaults and not re.search(any_of(BOS), query[:start]):
        return None  # it may be the rest of anything that was cut
    answer = _answer(form, turns[-1]["content"], query)
    if form.pattern("marks").search(answer) or (form.name == "DeepSeek" and "<think>" in answer):
        return None
    return with_answer(_settled(form, turns[:-1]), answer)


def _turns(form: Form, text: str, at: int) -> list[dict] | None:
    """Read turns up to the last answer, whose content is all that is left; None if the grammar does not."""
    turns: list[dict] = []
    if form.before is not None and _header(form, text, at) is None:
        end = form.pattern("before").search(text, at)
        if end is None or SPECIAL.search(text, at, end.start()):
            return None
        turns.append({"role": "system", "content": text[at : end.start()]})
        at = end.end()
    while (header := _header(form, text, at)) is not None:
        role, at = header
        if role == "assistant" and not form.open_assistant:
            at = _end(form.pattern("lead"), text, at)
        elif role == "assistant" and at < len(text):
            lead = form.pattern("lead").match(text, at)
            if lead is None:
                return None
            at = lead.end()
        end = form.pattern(f"ends_{role}").search(text, at)
        if role == "assistant" and (end is None or _header(form, text, end.end()) is None):
            return [*turns, {"role": role, "content": text[at:]}]
        if end is None or form.pattern("marks").search(text, at, end.start()):
            return None
        if form.is_plain and SPECIAL.search(text, at, end.start()):
            return None  # of another model, which says its turns in the same words
        turns.append({"role": role, "content": text[at : end.start()]})
        at = end.end()
    return None


def _header(form: Form, text: str, at: int) -> tuple[str, int] | None:
    """Return (role, where its content begins) of the turn that begins here, if one does."""
    for role in ROLES:
        if getattr(form, role) and (match := form.pattern(role).match(text, at)):
            return role, match.end()
    return None


def _settled(form: Form, turns: list[dict]) -> list[dict]:
    """Return the turns without what the template puts in: a system message of its own, or a date in front of one."""
    turns = list(turns)
    if form.name == "Llama-2" and turns and (system := SYSTEM_OF_LLAMA2.match(turns[0]["content"])):
        turns[0] = {"role": "user", "content": turns[0]["content"][system.end() :]}
        turns.insert(0, {"role": "system", "content": system[1]})
    if not turns or turns[0]["role"] != "system":
        return turns
    content = turns[0]["content"]
    if form.prelude:
        content = content[_end(form.pattern("prelude"), content) :]
    return (
        turns[1:] if not content or content in form.defaults else [{"role": "system", "content": content}, *turns[1:]]
    )


def _answer(form: Form, text: str, query: str) -> str:
    """Return an answer without the token that ends it and what the template has around it."""
    answer = _without_stop(text, form.stops)
    if form.last_lead:
        answer = answer[_end(form.pattern("last_lead"), answer) :]
    if form.name == "Llama-2" and answer != text and answer.endswith(" ") and _is_of_llama2(query):
        answer = answer[:-1]
    return answer


def _is_of_llama2(query: str) -> bool:
    """Whether a space stands in front of an answer's end, as in Llama-2's template and not in Mistral's."""
    return query.count("[INST]") == 1 or re.search(r" </s>[ \n]?<s>", query) is not None


def _without_stop(text: str, stops: tuple[str, ...]) -> str:
    """Return an answer without the token that ends it and the padding behind it, or the padding alone."""
    known = sorted({*stops, *PADS, *ENDS}, key=len, reverse=True)
    at, first_stop = len(text), None
    while (token := _last_token(text, at, known)) is not None:
        at = token.start
        if token.text in stops:
            first_stop = at
        if token.text[0] == "\n":
            break
    return text[: at if first_stop is None else first_stop]


class _Token(NamedTuple):
    text: str
    start: int


def _last_token(text: str, end: int, known: list[str]) -> _Token | None:
    """Return the token that text ends with, up to two characters of white space behind it aside."""
    for space in range(min(3, end + 1)):
        if text[end - space : end].strip(" \n"):
            break
        for token in known:
            if text.endswith(token, 0, end - space):
                return _Token(token, end - space - len(token))
    return None
