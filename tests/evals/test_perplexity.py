import heapq
import json
import math

import pytest
import torch

from starling_train.config.fields import UserError
from starling_train.config.sections import PerplexityConfig, check_texts, is_less_better
from starling_train.data import nectar, openchat
from starling_train.data.chat import Chat
from starling_train.evals import perplexity
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime


@pytest.fixture(scope="module")
def tokenizer():
    import openchat_tokenizer

    return openchat_tokenizer.build()


def budget(tokens: int = 4096) -> Budget:
    return Budget("laser.tokens_per_batch", tokens)


def whole(*ids: list[int]) -> list[perplexity.Window]:
    return [perplexity.Window(one, list(range(1, len(one)))) for one in ids]


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(tiny_mistral):
    model = tiny_mistral()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity.evaluate(model, whole([1, 2, 3, 4], [5, 6]), budget())
    assert found.tokens == 4
    assert found.nats == pytest.approx(math.log(97), rel=1e-6)
    assert found.perplexity == pytest.approx(97.0, rel=1e-5)


def test_it_is_the_loss_of_transformers_with_every_token_counted_alike(tiny_mistral):
    model = tiny_mistral().eval()
    windows = [[1, 9, 33, 2, 5, 96, 0], [7, 3], [4, 4, 4, 8]]
    with torch.no_grad():
        losses = [model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() for ids in windows]
    expected = sum(loss * (len(ids) - 1) for loss, ids in zip(losses, windows, strict=True)) / 10
    for tokens in (1, 7, 1000):  # a window at a time, some, all
        found = perplexity.evaluate(model, whole(*windows), budget(tokens))
        assert found.tokens == 10
        assert found.nats == pytest.approx(expected, rel=1e-6)


def test_what_does_not_count_is_read_but_not_counted(tiny_mistral):
    model = tiny_mistral().eval()
    ids = [1, 9, 33, 2, 5]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = -(logprobs[1, 33] + logprobs[3, 5]).item() / 2
    found = perplexity.evaluate(model, [perplexity.Window(ids, [2, 4])], budget())
    assert (found.tokens, found.nats) == (2, pytest.approx(expected, rel=1e-5))


@pytest.mark.parametrize("length", [2, 3, 4, 7, 8, 9, 20])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_windows_predict_every_token_that_counts_exactly_once(length, size):
    ids = list(range(length))
    for counted in (ids[1:], ids[1::3], ids[-1:]):
        found = perplexity.windows(ids, counted, size)
        assert [window.ids[place] for window in found for place in window.predicted] == counted
        assert all(2 <= len(window.ids) <= size for window in found)


def test_too_little_text_has_no_window(tokenizer):
    assert perplexity.windows([1], [], 8) == perplexity.windows([], [], 8) == []
    with pytest.raises(UserError, match="no two tokens"):
        perplexity.cut([""], Chat(tokenizer), 8)


def test_plain_text_begins_with_bos_and_nothing_in_it_is_special(tokenizer):
    [(ids, counted)] = perplexity.encode("Hello <|end_of_turn|>", Chat(tokenizer))
    assert ids[:2] == [1, 22557] and openchat.end_of_turn_id(tokenizer) not in ids
    assert counted == list(range(1, len(ids)))


def test_of_a_conversation_the_answers_count_with_their_ends(tokenizer):
    def user(text):
        return {"role": "user", "content": text}

    def assistant(text):
        return {"role": "assistant", "content": text}

    talk = [user("Hello"), assistant("Hi"), user("Hello"), assistant("Hello")]
    [(ids, counted)] = perplexity.encode(talk, Chat(tokenizer))
    assert ids == openchat.encode(talk, tokenizer, add_generation_prompt=False)
    end = openchat.end_of_turn_id(tokenizer)
    hi, hello = openchat.text_ids("Hi", tokenizer), openchat.text_ids("Hello", tokenizer)
    assert [ids[place] for place in counted] == [*hi, end, *hello, end]


def test_a_text_file_is_one_document_and_a_jsonl_file_one_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nStill the same.\n")
    assert perplexity.load(tmp_path / "a.txt") == ["One.\n\nStill the same.\n"]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    rows = [
        {"text": "One."},
        {"text": " "},  # nothing to read
        {"messages": talk},
        {"prompt": "Hi", "response": "Yes"},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": "Hi", "answers": [{"answer": "No", "rank": 2}, {"answer": "Yes", "rank": 1}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert perplexity.load(tmp_path / "a.jsonl") == ["One.", talk, talk, talk, talk]


def test_nectar_is_its_prompts_with_their_best_answers(tmp_path):
    talk = [{"role": "user", "content": "Hi"}]
    row = nectar.RankedRow(talk, [nectar.Answer("No", "m", 2.0), nectar.Answer("Yes", "n", 1.0)], ["x"], True)
    nectar.write_parquet([row], tmp_path / "rlaif.parquet")
    best = [[*talk, {"role": "assistant", "content": "Yes"}]]
    assert perplexity.load(tmp_path / "rlaif.parquet") == perplexity.load(tmp_path) == best


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b" \n", "a.txt: no text in it"),
        ("a.txt", b"\xff\xfe", "a.txt: not UTF-8"),
        ("a.jsonl", b"", "a.jsonl: no text in it"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: `text` is not a string"),
        ("a.jsonl", b'{"a": 3}', "a.jsonl:1: no conversation"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', "a.jsonl:2: no conversation"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: .*half a surrogate"),
        ("b.txt", b"x", "a.txt: no such file"),
    ],
)
def test_what_is_no_text_is_told_with_its_file(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        perplexity.load(tmp_path / name.replace("b.txt", "a.txt"))


@pytest.fixture
def of_texts(tmp_path) -> PerplexityConfig:
    (tmp_path / "a.txt").write_text("Hello there. " * 40)
    texts = {"english": "stdlib:LICENSE.txt", "python": "stdlib:heapq.py"}
    return PerplexityConfig(path=str(tmp_path / "a.txt"), texts=texts, tokens=20, window=8)


def test_named_texts_are_files_of_pythons_library_each_up_to_so_many_tokens(tokenizer, of_texts):
    texts = perplexity.read_all(of_texts, Chat(tokenizer))
    assert list(texts) == ["", "english", "python"]
    assert [sum(len(window.predicted) for window in windows) for windows in texts.values()] == [20, 20, 20]
    begin = tokenizer.decode([id_ for window in texts["python"] for id_ in window.ids[1:]])
    assert heapq.__doc__.split("\n")[0] in begin


def test_each_text_has_its_metric_and_the_path_is_the_whole(tiny_mistral):
    """The mean over tokens of both texts is the whole where there is no path."""
    policy, runtime = tiny_mistral().eval(), Runtime("cpu")
    texts = {"a": whole([1, 9, 33]), "b": whole([7, 3], [4, 4, 4, 8])}
    metrics = perplexity.shared(texts, policy, budget(), budget(), runtime).metrics
    a, b = (perplexity.evaluate(policy, texts[name], budget()) for name in "ab")
    assert (a.tokens, b.tokens) == (2, 4)
    assert metrics == {
        "eval/perplexity": pytest.approx(math.exp((2 * a.nats + 4 * b.nats) / 6)),
        "eval/perplexity_a": pytest.approx(a.perplexity),
        "eval/perplexity_b": pytest.approx(b.perplexity),
    }
    one = perplexity.shared({"": texts["b"], "a": texts["a"]}, policy, budget(), budget(), runtime).metrics
    assert one == {"eval/perplexity": metrics["eval/perplexity_b"], "eval/perplexity_a": metrics["eval/perplexity_a"]}
    assert all(map(is_less_better, one))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"a": "stdlib:none.txt"}, r"x\.texts\.a: .*none\.txt: no such file"),
        ({"a-b": "a.txt"}, r"x\.texts: 'a-b' becomes a metric's name"),
        ({"a": ""}, r"x\.texts\.a: not set"),
        ({"a": "x" * 5000}, r"x\.texts\.a: .*cannot be a path"),
        ({}, r"x\.path: not set"),
    ],
)
def test_a_text_that_is_none_is_told_by_its_key(tokenizer, texts, says):
    how = PerplexityConfig(texts=texts)
    with pytest.raises(UserError, match=f"^{says}"):
        check_texts(how, "x")
        perplexity.read_all(how, Chat(tokenizer), key="x")
