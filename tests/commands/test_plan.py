"""The command `plan`, and the hardware that recipes/README.md names."""

import re
import sys

import pytest

from starling_train import cli, dpo, plan
from starling_train.planning import planner


def recipes_of(command: str) -> list[str]:
    files = cli.find("recipes").glob("*.yaml")
    return sorted(path.stem for path in files if path.read_text().startswith(f"# {command}:"))


PPO = recipes_of("ppo")
NAMED = {
    name: (int(count or 1), int(gb))
    for name, count, gb in re.findall(
        r"^\| `(\w+)` \|[^|]*\| (?:one GPU|(\d+) GPUs) of (\d+) GB",
        (cli.find("recipes") / "README.md").read_text(),
        re.M,
    )
}


@pytest.fixture
def planned(monkeypatch, capsys, tmp_path):
    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["plan", *arguments])
        plan.main()
        assert list(tmp_path.iterdir()) == []  # nothing is written
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("recipe", PPO)
def test_every_recipe_is_planned(recipe, planned, toy):
    text = planned(f"+recipe={recipe}")
    for part in ("module type", "policy weights", "during rollout: KV cache", "during update: activations", "peak",
                 "estimate, not a measurement", "141 GB"):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("recipe", [*recipes_of("dpo"), *recipes_of("rm")])
def test_every_recipe_of_the_other_training_commands_is_planned(recipe, planned, toy):
    text = planned(f"+recipe={recipe}", "plan.gpu_gb=100")
    for part in ("module type", "weights", "during update: activations", "peak", "fits on a device of 100 GB"):
        assert part in text, part


def test_dpo_s_plan_is_what_its_dry_run_says(planned, toy, monkeypatch, capsys):
    """And is of the settings beside the recipe."""
    text = planned("+recipe=toy_dpo", "dpo.max_length=512")
    monkeypatch.setattr("sys.argv", ["dpo", "+recipe=toy_dpo", "dpo.max_length=512", "dry_run=true"])
    dpo.main()
    memory = capsys.readouterr().out.partition("memory, one process\n")[2]
    assert memory.strip() and memory.strip() in text


def test_more_processes_take_less_of_each_device_in_rm_too(planned):
    """Starling-RM-7B's 6,607,347,712 parameters in bfloat16, on four devices."""
    recipe = ("+recipe=starling_rm_7b", "plan.processes=4")
    whole, sharded = planned(*recipe), planned(*recipe, "cluster.zero_stage=3")
    assert gigabytes(whole, "weights") == pytest.approx(13.21, abs=0.01)
    assert gigabytes(sharded, "weights") == pytest.approx(13.21 / 4, abs=0.01)


@pytest.mark.parametrize(
    "arguments,command",
    [
        (["+recipe=rank_beta"], "laser"),
        (["+recipe=toy_laser", "laser.samples=5"], "laser"),
        (["+recipe=[toy_laser]"], "laser"),
    ],
)
def test_a_recipe_that_has_no_plan_is_sent_to_its_command(arguments, command, planned, capsys):
    with pytest.raises(SystemExit) as stopped:
        planned(*arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: recipe: ") and f"use python -m starling_train.{command} {arguments[0]}" in error


def test_the_table_names_hardware():
    assert {
        "small",
        "small_16gpu",
        "small_48gb",
        "small_24gb",
        "starling_alpha",
        "starling_beta",
        "laser_beta",
    } <= NAMED.keys()
    assert NAMED["small_16gpu"] == (16, 80)


@pytest.mark.parametrize("recipe", NAMED)
def test_a_recipe_fits_on_the_hardware_that_its_table_names(recipe, planned):
    count, gb = NAMED[recipe]
    text = planned(f"+recipe={recipe}", f"plan.processes={count}", f"plan.gpu_gb={gb}")
    assert f"\nfits on a device of {gb} GB" in text


@pytest.mark.parametrize("recipe", ["small_48gb", "small_24gb"])
def test_a_card_that_people_have_keeps_a_tenth_to_spare(recipe, planned):
    """For the CUDA context, fragments and what libraries hold."""
    _, gb = NAMED[recipe]
    text = planned(f"+recipe={recipe}", f"plan.gpu_gb={gb}")
    assert 0.5 * gb < gigabytes(text, "peak") <= 0.9 * gb


def test_small_48gb_trains_what_small_trains(planned):
    """And says what its host needs, and how long the copies take."""
    small, here = planned("+recipe=small"), planned("+recipe=small_48gb")
    table = re.compile(r"module type.*?\n\n", re.S)
    assert table.search(small)[0] == table.search(here)[0]
    moments = "optimizer: moments, master copies"
    assert gigabytes(here, moments) == 0 and gigabytes(here, "reward model") == 0
    # the value head's copies are float32 as it is, so the host keeps 4 bytes of each more
    assert gigabytes(here, f"in host memory: {moments}") == pytest.approx(gigabytes(small, moments), rel=0.01)
    assert gigabytes(here, "in host memory: reward model") == gigabytes(small, "reward model")
    # 8 updates x 1.74e9 weights x (4 bytes at 20 GB/s + 40 bytes at 30 GB/s); 13.2 GB at 20 GB/s
    assert "optimizer in host memory 21, reward model to the device 1" in here
    assert "host memory" not in small


def gigabytes(text: str, part: str) -> float:
    return float(re.search(rf"^{re.escape(part)}\s+([\d.]+) GB$", text, re.M)[1])


def test_more_processes_and_stages_take_less_of_each_device(planned):
    arguments = ("+recipe=small", "plan.processes=4")
    stages = [planned(*arguments, f"cluster.zero_stage={stage}") for stage in range(4)]
    optimizer = [gigabytes(text, "optimizer: moments, master copies") for text in stages]
    assert optimizer[1] == pytest.approx(optimizer[0] / 4, rel=0.02)
    gradients = [gigabytes(text, "during update: gradients") for text in stages]
    assert gradients[2] == pytest.approx(gradients[1] / 4, rel=0.01)
    weights = [gigabytes(text, "policy weights") for text in stages]
    assert weights[:3] == [weights[0]] * 3 and weights[3] == pytest.approx(weights[0] / 4, abs=0.01)
    assert gigabytes(stages[3], "during rollout: weights of the other processes") > 0.7 * weights[0]


def test_a_served_reward_model_takes_nothing_here(planned):
    text = planned("+recipe=starling_beta", "reward.kind=server", "reward.url=http://127.0.0.1:8000")
    assert gigabytes(text, "reward model") == 0


def test_no_weights_are_needed(planned):
    """Those of the recipe's models are not on this machine."""
    assert "1,744,830,464" in planned("+recipe=small")


def test_the_counts_that_are_tried_grow():
    assert list(planner.COUNTS) == sorted(planner.COUNTS) and sys.modules


def test_a_card_that_is_slow_at_the_scan_is_told_where_one_is_needed(planned):
    def lines(*arguments: str) -> list[str]:
        return [line for line in planned(*arguments).splitlines() if line.startswith("scan ")]

    (line,) = lines("+recipe=small", "plan.gpu_gb=24")
    assert "RTX 4090" in line and "1/64 of its float32 rate" in line
    assert lines("+recipe=small", "plan.gpu_gb=80") == []
    assert lines("+recipe=small", "plan.gpu_gb=24", "freeze.method=last_layers") == []
    assert lines("+recipe=small", "plan.gpu_gb=24", "cluster.device=cpu") == []
    assert len(lines("+recipe=laser_dpo", "plan.gpu_gb=24")) == 1
