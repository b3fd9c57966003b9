"""Text that OpenRLHF sends -> the conversation that it was rendered of, or a refusal; never another conversation."""

import pytest
from chat_tokenizers import FAMILIES

from starling_train.config.fields import UserError
from starling_train.data.rendered_text import to_conversation

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [USER, ANSWER]
OPENCHAT = "GPT4 Correct User: hi<|end_of_turn|>GPT4 Correct Assistant:"
CHATML = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: hi ASSISTANT:"
)
DEEPSEEK = "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>"
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nhi\n\n### Response:"
)
MISTRAL = "<s>[INST] hi [/INST] hello</s>[INST] hi [/INST]"
HARMONY = "<|start|>user<|message|>hi<|end|><|start|>assistant"


@pytest.mark.parametrize(
    "query,prompt",
    [
        (f"<s>{OPENCHAT} hello<|end_of_turn|>", OPENCHAT),
        (f"{OPENCHAT} hello<|end_of_turn|><|pad_0|><|pad_0|>", f"<s>{OPENCHAT}"),
        (f"{OPENCHAT} hello", None),
        (f"{CHATML}hello<|im_end|>\n", CHATML),
        (f"{CHATML}hello<|im_end|>", None),
        ("<s>[INST] hi [/INST] hello</s>", "<s>[INST] hi [/INST]"),
        ("<s>[INST] hi [/INST] hello</s>", None),
        ("\n\nHuman: hi\n\nAssistant: hello", "\n\nHuman: hi\n\nAssistant: "),
        ("\n\nHuman: hi\n\nAssistant: hello", None),
        ("hi hello", "hi"),
        ("<s> hi hello</s>", "hi"),
        # marks of other models
        (f"{LLAMA3}hello<|eot_id|>", LLAMA3),
        ("<s>[INST]hi[/INST]hello</s>", "<s>[INST]hi[/INST]"),
        ("<s>[INST] hi[/INST] hello</s>", "<s>[INST] hi[/INST]"),
        (f"{VICUNA} hello</s>", VICUNA),
        (f"<s> {VICUNA} hello</s>", None),
        (f"{DEEPSEEK}hello<｜end▁of▁sentence｜>", DEEPSEEK),
        (f"{DEEPSEEK}</think>hello<｜end▁of▁sentence｜>", f"{DEEPSEEK}</think>"),
        (f"{DEEPSEEK}hello<｜end▁of▁sentence｜>", None),
        (f"{ALPACA}\nhello</s>", f"{ALPACA}\n"),
        ("User: hi\nAssistant: hello</s>", "User: hi\nAssistant: "),
        ("User: hi\n\nAssistant: hello<｜end▁of▁sentence｜>", None),
        # padding on both sides, a token of its own or the end of turn
        (f"<|endoftext|><|endoftext|>{CHATML}hello<|im_end|><|endoftext|>", CHATML),
        (f"<|im_end|><|im_end|>{CHATML}hello<|im_end|><|im_end|>", CHATML),
        (f"<|eot_id|><|eot_id|>{LLAMA3}hello<|eot_id|>", None),
    ],
)
def test_openrlhf_s_text_becomes_the_conversation(query, prompt):
    assert to_conversation(query, prompt) == TALK


def test_earlier_turns_and_the_system_message_are_found():
    prompt = f"Be kind.<|end_of_turn|>{OPENCHAT} hello<|end_of_turn|>{OPENCHAT}"
    system = {"role": "system", "content": "Be kind."}
    assert to_conversation(f"{prompt} hello", prompt) == [system, *TALK, *TALK]
    chatml = f"<|im_start|>system\nBe kind.<|im_end|>\n{CHATML}hello<|im_end|>\n"
    assert to_conversation(chatml) == [system, *TALK]
    llama2 = "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nhi [/INST]"
    assert to_conversation(f"{llama2} hello </s><s>[INST] hi [/INST] hello </s>") == [system, *TALK, *TALK]


def test_the_answer_is_what_follows_the_prompt_whatever_it_contains():
    said = f"hello<|end_of_turn|>{OPENCHAT} I am both"
    assert to_conversation(f"{OPENCHAT} {said}", OPENCHAT) == [USER, {"role": "assistant", "content": said}]


@pytest.mark.parametrize(
    "query,prompt,answer",
    [
        (f"{CHATML}  hello \n<|im_end|>\n", CHATML, "  hello \n"),
        (f"{CHATML}  hello \n<|im_end|>", None, "  hello \n"),
        (f"{CHATML}hello\n", CHATML, "hello\n"),  # cut at the limit
        (f"{CHATML}write </s><|im_end|>", CHATML, "write </s>"),
        (f"{CHATML}say <|im_start|>user\nx<|im_end|> too<|im_end|>", CHATML, "say <|im_start|>user\nx<|im_end|> too"),
        (f"{CHATML}<think>\nhm\n</think>\n\nhello<|im_end|>", CHATML, "<think>\nhm\n</think>\n\nhello"),
        (f"{DEEPSEEK}<think>\nhm\n</think>\n\nhello<eos>", f"{DEEPSEEK}<think>\n", "hm\n</think>\n\nhello"),
        (f"{OPENCHAT}  hello", OPENCHAT, " hello"),
        (f"{MISTRAL} hello </s>", MISTRAL, "hello "),
    ],
)  # fmt: skip
def test_an_answer_is_what_the_policy_said(query, prompt, answer):
    assert to_conversation(query, prompt)[-1]["content"] == answer


@pytest.mark.parametrize(
    "query,prompt,says",
    [
        ("hi", None, "no known template"),
        ("hi", "hello", "does not begin with its prompt"),
        ("hello", "", "no known template"),
        # a mark inside a message of the prompt
        ("x", CHATML.replace("hi", "hi <|im_end|> there"), "marks of it inside a message"),
        ("x", CHATML.replace("hi", "<|im_start|>user\nhi"), "marks of it inside a message"),
        ("x", "<s>[INST] what does [INST] mean [/INST]", "marks of it inside a message"),
        (f"{CHATML}say <|im_start|>user\nx<|im_end|> too<|im_end|>", None, "marks of it inside a message"),
        # marks that are nobody's
        ("<|turn|>user hi<|turn|>bot hello", "<|turn|>user hi<|turn|>bot", "a prompt in no known template"),
        ("### Human: hi ### Assistant: hello", "### Human: hi ### Assistant:", "a prompt in no known template"),
        ("[|user|]hi\n[|assistant|]hello", "[|user|]hi\n[|assistant|]", "a prompt in no known template"),  # EXAONE
        ("<|turn>user\nhi<turn|>\nx", "<|turn>user\nhi<turn|>\n", "a prompt in no known template"),  # one side open
        ("<extra_id_1>User\nhi\nx", "<extra_id_1>User\nhi\n", "a prompt in no known template"),  # Nemotron
        ("<reserved_106>hi<reserved_107>x", "<reserved_106>hi<reserved_107>", "a prompt in no known template"),
        ("<seed:bos>user\nhi<seed:eos>x", "<seed:bos>user\nhi<seed:eos>", "a prompt in no known template"),
        ("]~b]user\nhi[e~[\nx", "]~b]user\nhi[e~[\n", "a prompt in no known template"),  # MiniMax
        ("<role>HUMAN</role>hix", "<role>HUMAN</role>hi", "a prompt in no known template"),  # Ling
        ("BEGINNING: USER: hi GPT: x", "BEGINNING: USER: hi GPT:", "a prompt in no known template"),  # Koala
        ("[Round 1]\n\n问：hi\n\n答：x", "[Round 1]\n\n问：hi\n\n答：", "a prompt in no known template"),
        # the words of a known template, around marks of another
        ("Human: hi<|separator|>\n\nAssistant: x", "Human: hi<|separator|>\n\nAssistant:", "no known template"),
        ("User: hi<|sep|>\n\nAssistant: x", "User: hi<|sep|>\n\nAssistant:", "no known template"),
        ("<|im_start|>tool\nhi<|im_end|>\n<|im_start|>assistant\nhello", None, "no known template"),
        # cut on the left
        (f"{CHATML[14:]}hello<|im_end|>", CHATML, "such as one that was cut"),
        (f"{CHATML[14:]}hello<|im_end|>", None, "without its beginning"),
        (f"<|im_end|>\n{CHATML}hello<|im_end|>", None, "without its beginning"),
        (f"<|eot_id|>{LLAMA3[17:]}hello<|eot_id|>", None, "without its beginning"),
        (f"is Paris.<|end_of_turn|>{OPENCHAT} hello", None, "without its beginning"),
        (f"is Paris.<eos>{DEEPSEEK[21:]}hello<eos>", None, "without its beginning"),
        # an answer that a policy would have begun in another way
        (f"{HARMONY}<|channel|>analysis<|message|>hm<|end|>", HARMONY, "does not begin as harmony's template has it"),
        (f"{DEEPSEEK}<think>\nhm\n</think>\n\nhello<eos>", None, "send prompts as well"),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused(query, prompt, says):
    with pytest.raises(UserError, match=says) as caught:
        to_conversation(query, prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Is a <b> tag |> bold?",
        "f <| x |> g",
        "xs: list[int] | None",
        "Why? Answer:",
        "let a = [|x|] in <xs:element>",
        "GPT is: it",
    ],
)
def test_text_of_people_is_a_prompt_without_marks(text):
    assert to_conversation(f"{text} hello", text) == [{"role": "user", "content": text}, ANSWER]


QUESTION = {"role": "user", "content": "What is the capital of France? [INST]\n\nOne: two"}
TALKS = [
    [QUESTION, {"role": "assistant", "content": "It is Paris."}],
    [QUESTION, {"role": "assistant", "content": "It is\n\nParis"}, USER, {"role": "assistant", "content": "Again one"}],
    [SYSTEM, USER, {"role": "assistant", "content": "Paris"}, QUESTION, {"role": "assistant", "content": ""}],
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_of_every_family_is_its_conversation(family):
    """As OpenRLHF sends it, decoded, with the prompt as rendered, decoded or not sent: the conversation, or refused."""
    kind = FAMILIES[family]
    tokenizer = kind.tokenizer()
    for talk in TALKS:
        talk = (
            [m | {"content": m["content"].replace("[INST]", "")} for m in talk] if "[INST]" in kind.template else talk
        )
        if talk[0]["role"] == "system" and not kind.takes_system:
            continue
        whole = tokenizer.apply_chat_template(talk, tokenize=False, **kind.values)
        prompt = tokenizer.apply_chat_template(talk[:-1], tokenize=False, add_generation_prompt=True, **kind.values)
        query, decoded = (
            tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, skip_special_tokens=False)
            for text in (whole, prompt)
        )
        assert to_conversation(query, prompt) == to_conversation(query, decoded) == talk
        try:
            assert to_conversation(query) == talk
        except UserError:
            assert family == "phi3_rstrip" and not talk[-1]["content"]  # nothing of its header's newline is left
