"""The tables at the seams have a row for everything that the configuration offers, and no other."""

from dataclasses import fields

import pytest

from starling_train.config import sections
from starling_train.config.sections import REWARD_MODELS, AlgorithmConfig, RewardConfig, RolloutConfig, TermConfig
from starling_train.core.advantages import ADVANTAGES
from starling_train.core.ppo import LOSSES, MEANS, RATIOS
from starling_train.rewards import kinds
from starling_train.rollout.generate import ENGINES
from starling_train.run.tracker import TRACKERS


def offered(section: type, key: str) -> set[str]:
    (field,) = (field for field in fields(section) if field.name == key)
    return set(field.metadata["choices"])


@pytest.mark.parametrize(
    ("table", "section", "key"),
    [
        (kinds.KINDS, RewardConfig, "kind"),
        (ENGINES, RolloutConfig, "engine"),
        (LOSSES, AlgorithmConfig, "name"),
        (ADVANTAGES, AlgorithmConfig, "name"),
    ],
)
def test_a_table_is_what_its_key_offers(table, section, key):
    assert set(table) == offered(section, key)


def test_what_is_compared_within_a_group_needs_one():
    for name, estimator in ADVANTAGES.items():
        assert AlgorithmConfig(name=name).has_groups == (not estimator.whitens)


def test_every_way_that_the_keys_of_the_loss_take_has_a_row():
    assert set(RATIOS) == offered(AlgorithmConfig, "ratio") and set(MEANS) == offered(AlgorithmConfig, "loss_mean")


def test_every_tracker_that_the_key_takes_has_a_row():
    assert tuple(TRACKERS) == sections.TRACKERS


def test_a_reward_kind_has_all_that_is_asked_of_one():
    for name, kind in kinds.KINDS.items():
        config = RewardConfig(kind=name, path="DIR", url="http://host", function="mine.py:score")
        assert kinds.of(config) is kind and callable(kind.check) and callable(kind.load) and callable(kind.identity)
        assert callable(kind.columns) and callable(kind.admit)
        assert set(kind.SCORED_BY) | {kind.LOCATION} <= {field.name for field in fields(RewardConfig)}
        assert config.has_weights == (name in REWARD_MODELS)
        if name == "terms":
            continue
        assert offered(TermConfig, "kind") >= {name}
        where = {"server": "http://host", "function": "mine.py:score"}.get(name, "DIR")
        assert kinds.described(config) == f"{where} ({name})"
