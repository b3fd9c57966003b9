"""Distributions without some ids: by hand, and as if the head had no such columns."""

import math

import pytest
import torch

from starling_train.core.excluded import NOTHING, ExcludedIds
from starling_train.core.logprobs import HeadForm, token_logprobs, token_logprobs_by

# of 4 ids with weights 1, 2, 3 and 4, the last is never there, and the first is no first token
BY_HAND = ExcludedIds((3,), (0,), 1)
HEAD = torch.tensor([[1.0], [2.0], [3.0], [4.0]]).log()


def entropy(*shares):
    return -sum(share * math.log(share) for share in shares)


def test_log_probabilities_and_entropy_by_hand():
    hidden, tokens = torch.ones(3, 1), torch.tensor([1, 0, 2])
    indices = torch.tensor([0, 1, 0])
    logprobs, entropies = token_logprobs(hidden, HEAD, tokens, excluded=BY_HAND.at(indices))
    torch.testing.assert_close(logprobs.exp(), torch.tensor([2 / 5, 1 / 6, 3 / 5]))
    late = entropy(1 / 6, 2 / 6, 3 / 6)
    torch.testing.assert_close(entropies, torch.tensor([entropy(2 / 5, 3 / 5), late, entropy(2 / 5, 3 / 5)]))
    # a temperature of a half squares the weights, and is applied to what is left
    logprobs, _ = token_logprobs(hidden, HEAD, tokens, 0.5, excluded=BY_HAND.at(indices))
    torch.testing.assert_close(logprobs.exp(), torch.tensor([4 / 13, 1 / 14, 9 / 13]))


def without_columns(logits, tokens, indices, ids):
    """The same where the columns are really not there."""
    logprobs, entropies = [], []
    for row, token, index in zip(logits, tokens.tolist(), indices.tolist(), strict=True):
        out = {*ids.always, *(ids.early if index < ids.floor else ())}
        kept = [column for column in range(len(row)) if column not in out]
        one = torch.distributions.Categorical(logits=row[kept])
        logprobs.append(one.log_prob(torch.tensor(kept.index(token))))
        entropies.append(one.entropy())
    return torch.stack(logprobs), torch.stack(entropies)


FORMS = {"plain": HeadForm(), "softcap": HeadForm(1.5, 3.0)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("head", ["frozen", "trained", "adapter", "own"])
@pytest.mark.parametrize("chunk", [2, 100])
def test_every_way_through_the_head_is_as_if_the_columns_were_not_there(head, form, chunk):
    torch.manual_seed(0)
    ids = ExcludedIds((9, 10), (2, 5), 3)
    tokens, indices = torch.tensor([0, 1, 3, 2, 5, 8, 4]), torch.tensor([0, 1, 2, 3, 4, 0, 9])
    states, weight, bias, weights = torch.randn(7, 5), torch.randn(11, 5), torch.randn(11), torch.randn(7)
    low_rank = (torch.randn(2, 5), torch.randn(11, 2)) if head == "adapter" else None
    gradients, measured = [], []
    for ours in (True, False):
        hidden = states.clone().requires_grad_()
        column = weight.clone().requires_grad_(head == "trained")
        whole = column if low_rank is None else column + low_rank[1] @ low_rank[0]
        excluded = ids.at(indices)
        if not ours:
            logits = form.logits(hidden @ whole.T + bias) / 0.7
            logprobs, entropies = without_columns(logits, tokens, indices, ids)
        elif head == "own":

            def own(rows, whole=whole):
                return form.logits(rows @ whole.T + bias)

            logprobs, entropies = token_logprobs_by(own, 11, hidden, tokens, 0.7, chunk, excluded)
        else:
            logprobs, entropies = token_logprobs(hidden, column, tokens, 0.7, chunk, low_rank, bias, form, excluded)
        measured.append((logprobs, entropies))
        (logprobs * weights).sum().backward()
        gradients.append([hidden.grad, *([column.grad] if head == "trained" else [])])
    for a, b in [*zip(*measured, strict=True), *zip(*gradients, strict=True)]:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    if head == "trained":
        assert gradients[0][1][9:].abs().max() == 0  # rows that are never there do not move


def test_without_excluded_ids_nothing_is_computed():
    assert NOTHING.at(torch.arange(3)) is None and ExcludedIds((), (5,), 0).at(torch.arange(3)) is None


def test_a_token_that_is_excluded_makes_no_number_infinite():
    # a process without sequences of its own takes part with such a token, and its loss counts 0
    for learns in (False, True):
        hidden, head = torch.ones(1, 1, requires_grad=True), HEAD.clone().requires_grad_(learns)
        logprob, _ = token_logprobs(hidden, head, torch.tensor([3]), excluded=BY_HAND.at(torch.tensor([0])))
        (0.0 * logprob.sum()).backward()
        assert logprob.isfinite().all() and hidden.grad.isfinite().all()
