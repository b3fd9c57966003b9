import pytest
import torch

from starling_train.config.fields import UserError
from starling_train.data import openchat
from starling_train.data.chat import Chat
from starling_train.data.preferences import Comparison
from starling_train.models.budget import Budget
from starling_train.rank_search import margin
from starling_train.rank_search.margin import Pair


@pytest.fixture(scope="module")
def tokenizer():
    import openchat_tokenizer

    return openchat_tokenizer.build()


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer)


def budget(tokens: int = 4096) -> Budget:
    return Budget("laser.tokens_per_batch", tokens)


def comparison(*answers: str, ranks: tuple[float, ...] = (1.0, 2.0)) -> Comparison:
    user = {"role": "user", "content": "Hello"}
    return Comparison([[user, {"role": "assistant", "content": text}] for text in answers], list(ranks))


def test_the_margin_is_of_means_over_the_answers_tokens(tiny_mistral):
    model = tiny_mistral().eval()

    def mean(ids, start):
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return sum(logprobs[place - 1, ids[place]].item() for place in range(start, len(ids))) / (len(ids) - start)

    pairs = [Pair([1, 5, 8, 30, 4], [1, 5, 8, 22], 3), Pair([1, 9, 60], [1, 9, 2, 2, 7, 11], 2)]
    margins = [mean(pair.chosen, pair.start) - mean(pair.rejected, pair.start) for pair in pairs]
    for tokens in (1, 9, 100):
        found = margin.evaluate(model, pairs, budget(tokens))
        assert found.pairs == 2
        assert found.mean == pytest.approx(sum(margins) / 2, abs=1e-6)
        assert found.share == sum(value > 0 for value in margins) / 2


def test_a_model_that_knows_nothing_prefers_nothing(tiny_mistral):
    model = tiny_mistral()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = margin.evaluate(model, [Pair([1, 2, 3, 4], [1, 2, 9], 2)], budget())
    assert (found.mean, found.share) == (0.0, 0.5)


def test_the_best_answer_is_set_against_the_worst(tokenizer, chat):
    rows = [comparison("so so", "Hello", "bad", ranks=(2.0, 1.0, 7.0)), comparison("yes", "no " * 50)]
    pairs, dropped = margin.pairs(rows, chat, 40)
    (pair,) = pairs
    assert dropped == 1
    end = openchat.end_of_turn_id(tokenizer)
    assert pair.chosen[pair.start :] == [*openchat.text_ids("Hello", tokenizer), end]
    assert pair.rejected[pair.start :] == [*openchat.text_ids("bad", tokenizer), end]
    assert (
        pair.chosen[: pair.start]
        == pair.rejected[: pair.start]
        == openchat.encode([{"role": "user", "content": "Hello"}], tokenizer)
    )


def test_two_answers_of_one_text_are_no_preference(chat):
    with pytest.raises(UserError, match=r"comparison 2: .*same text"):
        margin.pairs([comparison("a", "b"), comparison("a", "a")], chat, 100)
    with pytest.raises(UserError, match="none of 1 pairs has 5 tokens"):
        margin.pairs([comparison("a", "b")], chat, 5)
