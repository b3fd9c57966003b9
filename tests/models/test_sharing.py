import copy

import pytest
import torch

from starling_train.models.actors import Actors
from starling_train.models.micro_batch import MicroBatch
from starling_train.models.packing import Packing, attend_one_by_one, attend_padded
from starling_train.models.sharing import freeze_all, twin, unique_tensors
from starling_train.models.trunk import Trunk

SELECTIONS = {
    "scattered": ["layers.0.mlp.down_proj", "layers.2.self_attn.q_proj", "layers.1.self_attn.o_proj"],
    "upper": ["layers.2.mlp.up_proj", "layers.2.self_attn.v_proj"],
    "head": ["lm_head"],
    "all": [""],
}


def select(model, wanted):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in wanted))
    return model


def bytes_of(tensors):
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("wanted", SELECTIONS.values(), ids=SELECTIONS)
def test_twins_share_exactly_what_is_frozen(tiny_mistral, wanted):
    model = select(tiny_mistral(), wanted)
    other = twin(model)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (a is b) == (not a.requires_grad), name
        assert torch.equal(a, b)


@pytest.mark.parametrize("wanted", SELECTIONS.values(), ids=SELECTIONS)
def test_outputs_are_bit_identical_to_those_of_full_copies(tiny_mistral, wanted):
    model = select(tiny_mistral(), wanted)
    shared, full = twin(model), copy.deepcopy(model)
    ids = torch.arange(24).reshape(2, 12)
    assert torch.equal(shared(ids).logits, full(ids).logits)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(ids).logits.pow(2).mean().backward()
    optimizer.step()
    assert not torch.equal(model(ids).logits, full(ids).logits)  # the original moved
    assert torch.equal(shared(ids).logits, full(ids).logits)  # its twin did not


def test_each_frozen_tensor_is_held_once(tiny_mistral):
    model = select(tiny_mistral(), SELECTIONS["scattered"])
    actors = Actors(model, "twin", lowest=0)
    trainable = bytes_of(p for p in model.parameters() if p.requires_grad)
    value_head = bytes_of(actors.value_head.parameters())
    buffers = bytes_of(unique_tensors(model)) - bytes_of(set(model.parameters()))
    expected = bytes_of(unique_tensors(model)) + 2 * trainable + 2 * buffers + value_head
    assert bytes_of(unique_tensors(actors)) == expected
    naive = 3 * bytes_of(unique_tensors(model)) + value_head
    assert expected < 0.6 * naive


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lowest", [0, 1, 2, 3])
def test_a_cut_trunk_computes_what_the_whole_does(tiny_mistral, lowest, window):
    model = tiny_mistral().eval()
    model.config.sliding_window = window
    trunk = Trunk(model.model, lowest)
    sequences = [torch.arange(12), torch.arange(20, 27), torch.tensor([30])]
    ids, packing = torch.cat(sequences), Packing([12, 7, 1])
    whole = torch.cat([model.model(one[None], use_cache=False).last_hidden_state[0] for one in sequences])
    torch.testing.assert_close(trunk.suffix(trunk.prefix(ids, packing), packing, torch.arange(20)), whole)
    some = torch.tensor([3, 4, 11, 19])  # what is asked for does not depend on what else is
    torch.testing.assert_close(trunk.suffix(trunk.prefix(ids, packing), packing, some), whole[some])
    # nothing of the views shows in the model that they are views of
    assert model.config._attn_implementation == "sdpa"
    again = model.model(sequences[0][None], use_cache=False).last_hidden_state[0]
    assert torch.equal(again, model.model(sequences[0][None], use_cache=False).last_hidden_state[0])
    torch.testing.assert_close(again, whole[:12])


def micro_batch():
    ids = torch.randint(97, (30,), generator=torch.Generator().manual_seed(0))
    source = torch.tensor([3, 4, 5, 11, 12, 25, 26, 27, 28])
    indices = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2, 3])
    return MicroBatch(ids, Packing([10, 10, 10]), source, ids[source + 1], indices)


@pytest.mark.parametrize("critic", ["head", "twin", "separate"])
@pytest.mark.parametrize("wanted,lowest", [(SELECTIONS["scattered"], 0), (SELECTIONS["upper"], 2)])
def test_actors_equal_three_full_models(tiny_mistral, critic, wanted, lowest):
    policy = select(tiny_mistral(), wanted)
    full = copy.deepcopy(policy)
    actors = Actors(policy, critic, lowest)
    torch.nn.init.normal_(actors.value_head.out.weight)
    batch = micro_batch()
    outputs = actors(batch)
    states = full.model(batch.ids.view(3, 10), use_cache=False).last_hidden_state.flatten(0, 1)[batch.source]
    distribution = torch.distributions.Categorical(logits=full.lm_head(states))
    torch.testing.assert_close(outputs.logprobs, distribution.log_prob(batch.targets))
    torch.testing.assert_close(outputs.entropy, distribution.entropy())
    torch.testing.assert_close(outputs.values, actors.value_head(states))
    torch.testing.assert_close(actors.reference_logprobs(batch), outputs.logprobs.detach())
    (outputs.logprobs.sum() + outputs.values.pow(2).sum()).backward()
    (distribution.log_prob(batch.targets).sum()).backward()
    if critic != "head":  # the policy's gradients are then those of its own loss alone
        for (name, a), (_, b) in zip(policy.named_parameters(), full.named_parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)


def test_values_start_at_zero_and_reference_never_trains(tiny_mistral):
    actors = Actors(select(tiny_mistral(), SELECTIONS["scattered"]), "twin", 0)
    assert torch.equal(actors(micro_batch()).values, torch.zeros(9))
    assert not any(p.requires_grad for p in actors.reference.parameters())
    assert all(not name.startswith("reference") for name in actors.trainable())


def test_critic_warm_up_leaves_the_policy_alone(tiny_mistral):
    actors = Actors(select(tiny_mistral(), SELECTIONS["scattered"]), "head", 0)
    actors(micro_batch(), train_policy=False).values.sum().backward()
    assert all(p.grad is None for p in actors.policy.parameters())
    assert actors.value_head.out.bias.grad is not None


def test_freeze_all(tiny_mistral):
    assert not any(p.requires_grad for p in freeze_all(tiny_mistral()).parameters())


@pytest.mark.parametrize("window", [None, 3])
def test_padded_and_single_attention_agree(window):
    """On a GPU packed sequences are padded, on a CPU they go one by one; both here, with gradients."""
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    packing, found = Packing([6, 1, 4]), []
    inputs = [torch.randn(1, heads, 11, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    for attend in (attend_padded, attend_one_by_one):
        out = attend(module, *inputs, packing, window=window, dropout=0.0, scaling=None)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert found[0][0].shape == (1, 11, 4, 8)
    for padded, single in zip(*found, strict=True):
        torch.testing.assert_close(padded, single)
