"""How far scores in 8 and 4 bits are from those of the weights as they are, on the toy's reward model."""

from itertools import combinations

import pyarrow.parquet
import pytest
import torch

from starling_train.models.reward.model import load_reward_model


@pytest.fixture(scope="module")
def talks(toy):
    """Lists of four answers to a prompt, as conversations."""
    rows = pyarrow.parquet.read_table(toy / "nectar" / "data" / "rlaif.parquet").slice(0, 50).to_pylist()
    asked = [row["prompt"].split("Human: ")[1].split("\n\nAssistant")[0].strip() for row in rows]
    return [
        [
            [{"role": "user", "content": question}, {"role": "assistant", "content": a["answer"]}]
            for a in row["answers"][:4]
        ]
        for question, row in zip(asked, rows, strict=True)
    ]


@pytest.mark.parametrize(("load_in", "distance", "kept"), [("8bit", 0.03, 0.98), ("4bit", 0.1, 0.95)])
def test_scores_stay_near(toy, talks, load_in, distance, kept):
    """By root mean square over the scores' deviation, and by pairs of answers that stay in their order."""
    pytest.importorskip("bitsandbytes")
    flat = [talk for group in talks for talk in group]
    exact, near = (
        torch.tensor(load_reward_model("starling_7b", toy / "reward", dtype="bfloat16", load_in=how).score(flat))
        for how in (None, load_in)
    )
    off = (near - exact).square().mean().sqrt() / exact.std()
    assert 0 < off < distance
    pairs = [(4 * group + i, 4 * group + j) for group in range(len(talks)) for i, j in combinations(range(4), 2)]
    same = sum(bool((exact[i] > exact[j]) == (near[i] > near[j])) for i, j in pairs)
    assert kept < same / len(pairs) <= 1
