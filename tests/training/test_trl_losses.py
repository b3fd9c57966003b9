"""rloo and grpo beside TRL's trainers: the same advantages of the same rewards, the same loss, the same gradients.

TRL's own code pads, scores under policy and reference, compares the rewards of a group and computes the loss; it is
given the ids of prompts and responses instead of drawing them. Between the scores and the loss the policies of both
sides are moved alike, far enough that ratios are clipped.
"""

from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from minibatch import add_gradients
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from starling_train.config.sections import AlgorithmConfig, KLConfig
from starling_train.models.actors import Actors
from starling_train.rollout.responses import Rollout
from starling_train.training.ppo.experience import make_experience

trl = pytest.importorskip("trl", reason="trl is in the test extra")

TRAINED = ("model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight")
GROUP, LIMIT, BETA = 3, 9, 0.3
LENGTHS = (6, 2, 9, 1, 4, 3)  # of the responses, three to each of two prompts; the third has reached the limit
REWARDS = [1.0, -0.5, 0.3, 2.0, -1.0, 0.4]
CUT = [length == LIMIT for length in LENGTHS]


class Learned(NamedTuple):
    """advantages: of each response. gradients: of the trained tensors, by name. clipped: share of the tokens."""

    advantages: torch.Tensor
    loss: float
    gradients: dict[str, torch.Tensor]
    clipped: float = 0.0


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_models):
    """The directory of a Mistral whose next tokens are far from equally likely."""
    directory = tmp_path_factory.mktemp("trl") / "model"
    tokenizer = AutoTokenizer.from_pretrained(small_models / "policy")
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "initializer_range": 0.3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **shape, **heads)).save_pretrained(directory)
    return directory


def drawn(directory) -> Rollout:
    """The responses, all of which end themselves but for the one at the limit."""
    tokenizer, random = AutoTokenizer.from_pretrained(directory), torch.Generator().manual_seed(3)
    prompts = [torch.randint(10, len(tokenizer), (length,), generator=random).tolist() for length in (7, 4)]
    responses = [torch.randint(10, len(tokenizer), (length,), generator=random).tolist() for length in LENGTHS]
    for response, is_cut in zip(responses, CUT, strict=True):
        response[-1] = 9 if is_cut else tokenizer.eos_token_id
    return Rollout([prompt for prompt in prompts for _ in range(GROUP)], responses, [not cut for cut in CUT])


def move(policy: MistralForCausalLM, seed: int) -> None:
    """Add noise to what trains, the same for the same seed."""
    random = torch.Generator().manual_seed(seed)
    for name in TRAINED:
        weight = policy.get_parameter(name)
        weight.data += 0.1 * torch.randn(weight.shape, generator=random)


def theirs(directory, algorithm: str, rewards: list[float | None], tmp_path, **settings) -> Learned:
    """What TRL's trainer of the algorithm learns from the responses."""
    kinds = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}
    trainer_of, config_of = kinds[algorithm]
    config = config_of(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=len(LENGTHS), num_generations=GROUP, num_iterations=2, max_completion_length=LIMIT,
        **settings,
    )  # fmt: skip
    rollout = drawn(directory)
    trainer = trainer_of(
        model=MistralForCausalLM.from_pretrained(directory), reward_funcs=[lambda completions, **columns: rewards],
        args=config, train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=AutoTokenizer.from_pretrained(directory),
    )  # fmt: skip
    answers = (rollout.responses, None) if algorithm == "grpo" else rollout.responses
    trainer._tokenize_prompts = lambda prompts: (rollout.prompts, None, {})
    trainer._generate_single_turn = lambda *given: answers
    trainer.current_gradient_accumulation_steps = 1  # set where training starts
    policy = trainer.model.train()
    move(policy, 1)
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * len(LENGTHS))
    move(policy, 2)
    loss = trainer.compute_loss(policy, inputs)
    loss.backward()
    return Learned(inputs["advantages"], loss.item(), {name: policy.get_parameter(name).grad for name in TRAINED})


def ours(directory, algorithm: str, rewards: list[float | None], beta: float, kl: KLConfig, **settings) -> Learned:
    """What we learn from the same responses, in micro-batches of a few."""
    policy = MistralForCausalLM.from_pretrained(directory)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in TRAINED)
    actors = Actors(policy, "none", lowest=1).train()
    config = AlgorithmConfig(
        name=algorithm, responses_per_prompt=GROUP, critic="none", tokens_per_microbatch=30, loss_length=LIMIT,
        kl=kl, **settings,
    )  # fmt: skip
    scores = torch.tensor([torch.nan if reward is None else reward for reward in rewards])
    move(policy, 1)
    left_out = CUT if config.drop_truncated else None
    experience = make_experience(actors, drawn(directory), scores, config, beta, left_out=left_out)
    move(policy, 2)
    rows = list(experience.row_at.values())
    sums = add_gradients(actors, experience, rows, config)
    clipped = sums["clipped"] / sum(LENGTHS[row] for row in rows)
    gradients = {name: policy.get_parameter(name).grad for name in TRAINED}
    return Learned(experience.advantages[:, 0], sums["policy_loss"], gradients, clipped)


def same(one: Learned, other: Learned) -> None:
    assert 0.1 < one.clipped < 0.9, one.clipped
    torch.testing.assert_close(one.advantages, other.advantages, atol=1e-5, rtol=1e-5)
    assert one.loss == pytest.approx(other.loss, abs=1e-5)
    for name, gradient in other.gradients.items():
        assert gradient.abs().max() > 1e-3, "there is something to compare"
        torch.testing.assert_close(one.gradients[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "mean,loss_type,ratio,level,beta,scaled",
    [
        ("sequences", "grpo", "token", "token", 0.0, True),
        ("sequences", "grpo", "token", "token", BETA, True),
        ("tokens", "bnpo", "token", "token", BETA, False),
        ("tokens", "dapo", "token", "token", BETA, True),
        ("length", "dr_grpo", "token", "token", BETA, False),
        ("sequences", "grpo", "sequence_mean", "sequence", BETA, True),
        ("length", "dr_grpo", "sequence_mean", "sequence", BETA, True),
    ],
)
def test_grpo_is_trls(model, tmp_path, mean, loss_type, ratio, level, beta, scaled):
    """Its loss over sequences, tokens or a constant length, with a bound of its own above, and the KL in the loss."""
    found = ours(
        model, "grpo", REWARDS, beta, KLConfig(where="loss", estimator="k3"), clip=0.1, clip_high=0.28, ratio=ratio,
        loss_mean=mean, scale_by_group=scaled,
    )  # fmt: skip
    expected = theirs(
        model, "grpo", REWARDS, tmp_path, beta=beta, epsilon=0.1, epsilon_high=0.28, loss_type=loss_type,
        importance_sampling_level=level, scale_rewards="group" if scaled else "none",
        use_bias_correction_kl=False,  # a ratio in front of the KL, TRL's default; the paper has none
    )  # fmt: skip
    same(found, expected)


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_rloo_is_trls(model, tmp_path, beta):
    """A response is one action; what its KL costs is taken from its reward, before others are compared with it."""
    kl = KLConfig(where="reward", estimator="k1")
    found = ours(model, "rloo", REWARDS, beta, kl, clip=0.1, ratio="sequence", loss_mean="sequences")
    same(found, theirs(model, "rloo", REWARDS, tmp_path, beta=beta, epsilon=0.1))


@pytest.mark.parametrize("algorithm,scaling", [("grpo", "group"), ("grpo", "none"), ("rloo", None)])
@pytest.mark.parametrize("rewards", [[1.0, None, 0.3, 2.0, -1.0, 0.4], [None, None, 0.3, 0.5, 0.5, 0.5]], ids=str)
def test_advantages_without_some_rewards_are_trls(model, tmp_path, algorithm, scaling, rewards):
    """Of a response without one, of the only one of a group with one, and of those that are all worth the same: 0."""
    kl = KLConfig(where="reward", estimator="k1")
    found = ours(model, algorithm, rewards, 0.0, kl, scale_by_group=scaling != "none")
    settings = {"scale_rewards": scaling} if scaling else {}
    expected = theirs(model, algorithm, rewards, tmp_path, beta=0.0, **settings).advantages
    torch.testing.assert_close(found.advantages, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mean,loss_type", [("tokens", "bnpo"), ("sequences", "grpo")])
def test_what_was_cut_is_left_out_of_the_loss_as_trl_does(model, tmp_path, mean, loss_type):
    """Its reward counts for the others all the same. TRL's mean over sequences still divides by those it has masked."""
    kl = KLConfig(where="loss", estimator="k3")
    found = ours(model, "grpo", REWARDS, 0.0, kl, clip=0.1, loss_mean=mean, drop_truncated=True)
    expected = theirs(
        model, "grpo", REWARDS, tmp_path, beta=0.0, epsilon=0.1, loss_type=loss_type, mask_truncated_completions=True
    )
    if mean == "sequences":
        factor = len(LENGTHS) / (len(LENGTHS) - sum(CUT))
        gradients = {name: factor * gradient for name, gradient in expected.gradients.items()}
        expected = Learned(expected.advantages, factor * expected.loss, gradients)
    same(found, expected)
