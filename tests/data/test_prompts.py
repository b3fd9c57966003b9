import openchat_tokenizer
import pytest

from starling_train.config.fields import UserError
from starling_train.data.chat import Chat
from starling_train.data.prompts import Prompt, Stream, hold_out, tokenise


def user(text):
    return [{"role": "user", "content": text}]


def prompts(count):
    return [Prompt(user(f"question {i}"), [i]) for i in range(count)]


@pytest.fixture(scope="module")
def chat():
    return Chat(openchat_tokenizer.build())


def test_long_prompts_are_dropped_and_counted(chat):
    fitting, too_long = tokenise([user("Hello"), user("word " * 50), user("Hello")], chat, 17)
    assert [prompt.text() for prompt in fitting] == ["Hello", "Hello"]
    assert len(fitting[0].ids) == 17  # the model card's example
    assert too_long == 1


def test_no_prompt_that_fits_names_the_limit_and_what_would_do(chat):
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens: 16 .* 17 or more"):
        tokenise([user("Hello"), user("Hello there")], chat, 16)


def test_held_out_prompts_are_distinct_and_not_trained_on():
    rows = prompts(10) + prompts(3)  # three duplicates
    training, held_out = hold_out(rows, 4, seed=0)
    assert len({p.text() for p in held_out}) == 4
    assert not {p.text() for p in held_out} & {p.text() for p in training}
    assert {p.text() for p in held_out} | {p.text() for p in training} == {p.text() for p in rows}
    assert hold_out(rows, 4, seed=0) == (training, held_out)
    assert hold_out(rows, 4, seed=1) != (training, held_out)


def test_too_few_prompts_names_the_key():
    with pytest.raises(UserError, match=r"data\.eval_prompts"):
        hold_out(prompts(4), 4, seed=0)


def test_the_stream_visits_every_prompt_once_an_epoch_in_a_new_order():
    stream = Stream(prompts(6), batch=4, seed=0)
    seen = [p.text() for step in (1, 2, 3) for p in stream.batch(step)]  # two epochs of six
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(p.text() for p in prompts(6))
    assert seen[:6] != seen[6:]


def test_a_batch_depends_on_the_step_only():
    straight = Stream(prompts(6), 4, seed=0)
    for step in (1, 2, 3, 4):
        straight.batch(step)
    assert Stream(prompts(6), 4, seed=0).batch(4) == straight.batch(4)
    assert Stream(prompts(6), 4, seed=1).batch(4) != straight.batch(4)
