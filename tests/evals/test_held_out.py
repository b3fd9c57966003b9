"""What is measured while a policy trains, against the same measured alone."""

import math

import pytest
import torch

from starling_train.config import evaluate, sections
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.data.chat import Chat
from starling_train.evals import held_out, perplexity, registry
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.measured import Measured


@pytest.fixture
def asked(tmp_path) -> PpoConfig:
    config = PpoConfig()
    (tmp_path / "text.txt").write_text("Hello there. " * 40)
    config.evaluation.suites = ["perplexity"]
    config.evaluation.perplexity.path = str(tmp_path / "text.txt")
    config.evaluation.perplexity.window, config.evaluation.perplexity.tokens = 16, 50
    return config


@pytest.fixture(scope="module")
def chat():
    import openchat_tokenizer

    return Chat(openchat_tokenizer.build())


def test_perplexity_is_that_of_the_text_under_the_policy_as_it_is(tiny_mistral, asked, chat):
    held = held_out.HeldOut.from_config(asked, [], chat)
    (skill,) = held.suites
    windows = skill.args[0][""]
    assert sum(len(window.predicted) for window in windows) == 50 and len(windows) == 4
    small = [[token % 97 for token in window.ids] for window in windows]  # the tiny model's vocabulary
    windows[:] = [perplexity.Window(ids, w.predicted) for ids, w in zip(small, windows, strict=True)]
    policy = tiny_mistral()
    slots, tokens = Budget("rollout.slots", 4), Budget("algorithm.tokens_per_microbatch", 4096)

    def measured() -> float:
        return held.skills(policy, slots, tokens, Runtime("cpu")).metrics["eval/perplexity"]

    alone = perplexity.evaluate(tiny_mistral(), windows, Budget("x", 4096))
    assert measured() == pytest.approx(alone.perplexity, rel=1e-5)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    assert measured() == pytest.approx(97.0, rel=1e-4)
    values = held.skills(policy, slots, tokens, Runtime("cpu")).values["eval/perplexity"]
    assert [value.weight for value in values.values()] == [len(window.predicted) for window in windows]
    assert all(value.value == pytest.approx(math.log(97.0), rel=1e-4) for value in values.values())


def test_without_the_suite_there_is_no_text(chat):
    held = held_out.HeldOut.from_config(PpoConfig(), [], chat)
    assert held.suites == [] and held.skills(None, None, None, None) == Measured({}, [], {})


def test_the_table_of_suites_is_what_the_configuration_offers():
    assert tuple(registry.SUITES) == evaluate.SUITES
    assert all(registry.suite(name).name == name for name in registry.SUITES)
    assert tuple(n for n in registry.SUITES if registry.suite(n).during_training is not None) == tuple(sections.SUITES)


def test_a_missing_text_is_told_by_its_key(asked, chat):
    asked.evaluation.perplexity.path += ".gone"
    with pytest.raises(UserError, match=r"^evaluation\.perplexity\.path: .*no such file"):
        held_out.HeldOut.from_config(asked, [], chat)


def test_adapters_count_those_of_the_head_too(tiny_mistral):
    from starling_train.config.sections import LoraConfig
    from starling_train.models import adapters

    windows = [perplexity.Window([1, 9, 33, 2, 5, 96, 0], [1, 3, 6])]
    model = tiny_mistral()
    base = perplexity.evaluate(model, windows, Budget("x", 4096))
    torch.manual_seed(1)
    adapters.add(model, ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"], LoraConfig(rank=2))
    assert perplexity.evaluate(model, windows, Budget("x", 4096)).nats == pytest.approx(base.nats)
    with torch.no_grad():
        for _, layer in adapters.adapted(model):
            layer.lora_B[adapters.NAME].weight.normal_()
    found = perplexity.evaluate(model, windows, Budget("x", 4096))
    assert found.nats == pytest.approx(perplexity.evaluate(adapters.merged(model), windows, Budget("x", 4096)).nats)
    assert abs(found.nats - base.nats) > 0.01
