"""Recipes: those of compare, recipes of one's own, and recipes given to another command."""

import re

import pytest

from starling_train import cli
from starling_train.config import compare, conf_files
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig


@pytest.mark.parametrize("recipe,skills", [
    ("small", ["eval/kl_reference"]), ("starling_beta", ["eval/kl_reference"]), ("laser_beta", ["eval/kl_reference"]),
    ("toy", ["eval/function_calling"]),
])  # fmt: skip
def test_compare_takes_every_recipe_with_the_skills_that_it_measures(recipe, skills):
    config = cli.configuration([f"+recipe={recipe}", "compare.only=[snr,none]"], conf_files.FILES["compare"], "compare")
    compare.check(config)
    assert config.skills() == skills


@pytest.mark.parametrize("path,skills", [(None, []), ("other.txt", ["eval/perplexity"])])
def test_compare_takes_each_text_as_a_skill_of_its_own(path, skills):
    config = compare.CompareConfig()
    config.evaluation.suites = ["perplexity"]
    config.evaluation.perplexity.path = path
    config.evaluation.perplexity.texts = {"english": "a.txt", "python": "b.py"}
    assert config.skills() == [*skills, "eval/perplexity_english", "eval/perplexity_python"]


# recipes of one's own


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "mine" / "recipe"
    (folder / "team").mkdir(parents=True)
    (folder / "plain.yaml").write_text("name: plain\nfreeze:\n  top_percent: 10\n")
    (folder / "marked.yaml").write_text("# @package _global_\nname: marked\nfreeze:\n  top_percent: 10\n")
    (folder / "upon.yaml").write_text("defaults:\n  - plain\n  - _self_\nname: upon\nseed: 3\n")
    (folder / "upon_ours.yaml").write_text("defaults:\n  - toy\n  - override /freeze: none\n  - _self_\nname: ours\n")
    (folder / "team" / "deep.yaml").write_text("name: deep\nfreeze:\n  top_percent: 10\n")
    (folder / "team" / "upon.yaml").write_text("defaults:\n  - deep\n  - _self_\nname: team\n")
    (folder / "team" / "ours.yaml").write_text("defaults:\n  - /recipe@_here_: toy\n  - _self_\nname: ours\n")
    (folder / "team" / "lost.yaml").write_text("defaults:\n  - toy\n  - _self_\n")
    (folder / "pairs.yaml").write_text("defaults:\n  - toy_dpo\n  - _self_\nname: pairs\ndpo:\n  beta: 0.3\n")
    (folder / "typo.yaml").write_text("algorithm:\n  stepss: 3\n")
    return folder.parent


@pytest.mark.parametrize(
    "flag", [["-cd", "{}"], ["--config-dir", "{}"], ["--config-dir={}"], ["hydra.searchpath=[{}]"]]
)
@pytest.mark.parametrize("recipe,name", [
    ("recipe=plain", "plain"), ("recipe=marked", "marked"), ("recipe=upon", "upon"), ("recipe/team=deep", "deep"),
    ("recipe=[toy,plain]", "plain"), ("recipe=team/deep", "deep"), ("recipe/team=upon", "team"),
    ("recipe=[plain,team/deep]", "deep"),
])  # fmt: skip
def test_a_recipe_of_one_s_own_needs_no_mark(own, flag, recipe, name):
    config = cli.configuration([*(part.format(own) for part in flag), f"+{recipe}", "algorithm.steps=7"])
    assert (config.name, config.freeze.top_percent, config.algorithm.steps) == (name, 10, 7)


def test_the_recipe_that_the_documents_show(tmp_path):
    """docs/command_line.md has it whole."""
    page = (cli.find("recipes").parent / "docs" / "command_line.md").read_text()
    (text,) = re.findall(r"^```yaml\n# DIR/recipe/mine.yaml\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    config = cli.configuration(["-cd", str(tmp_path), "+recipe=mine"])
    assert (config.name, config.freeze.method, config.freeze.last_layers) == ("mine", "last_layers", 2)
    assert config.rollout == cli.configuration(["+recipe=small"]).rollout


def test_a_recipe_of_one_s_own_builds_on_ours(own):
    config = cli.configuration(["-cd", str(own), "+recipe=upon_ours"])
    assert (config.name, config.freeze.method, config.prepare) == ("ours", "none", "toy")
    config = cli.configuration(["-cd", str(own), "+recipe/team=ours"])
    assert (config.name, config.prepare) == ("ours", "toy")


def refused(monkeypatch, capsys, schema, name, *arguments):
    """What a command line ends with."""
    monkeypatch.setattr("sys.argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.command(lambda config: None, schema, name)(lambda config: pytest.fail("accepted"))()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name,arguments,command", [
    ("config", ["+recipe=toy_dpo"], "dpo"), ("dpo", ["+recipe=small"], "ppo"), ("rm", ["+recipe=toy_laser"], "laser"),
    ("compare", ["+recipe=toy_rm"], "rm"), ("config", ["-cd", "{own}", "+recipe=pairs"], "dpo"),
    ("config", ["+recipe=toy_rm", "rm.epochs=3"], "rm"),
])  # fmt: skip
def test_a_recipe_of_another_command_is_named_with_its_command(own, monkeypatch, capsys, name, arguments, command):
    given = [argument.format(own=own) for argument in arguments]
    error = refused(monkeypatch, capsys, conf_files.FILES[name], name, *given)
    recipe = next(argument for argument in given if "recipe=" in argument)
    assert error == (
        f"error: recipe: {recipe} is for another command; use python -m starling_train.{command} {recipe}\n"
    )


@pytest.mark.parametrize("name,schema,arguments,says", [
    ("config", PpoConfig, ["-cd", "{own}", "+recipe=typo"],
     "algorithm.stepss: no such key; did you mean algorithm.steps? use one of: name, steps"),
    ("config", PpoConfig, ["+recipe=toy", "algorithm.stepss=3"], "algorithm.stepss: no such key"),
    ("config", PpoConfig, ["recipe=toy"], "recipe: no such key; write +recipe=NAME, with a plus"),
    ("config", PpoConfig, ["-cd", "{own}", "+recipe=nothing"], "recipe: there is no 'nothing'; use one of: "),
    ("rm", RmConfig, ["algorithm.steps=3"], "algorithm.steps: no such key"),
    ("config", PpoConfig, ["-cd", "{own}", "+recipe=[toy,plan]"],
     "recipe: there is no 'plan'; did you mean plain? use one of: debug, laser_beta, marked, pairs, plain, "),
    ("config", PpoConfig, ["-cd", "{own}", "+recipe/team=lost"],
     "recipe/team: there is no 'toy'; write /recipe@_here_: toy for one of ours"),
    ("config", PpoConfig, ["-cd", "{own}", "+recipe/team=deap"],
     "recipe/team: there is no 'deap'; did you mean deep? use one of: deep, lost, "),
])  # fmt: skip
def test_other_mistakes_are_not_taken_for_it(own, monkeypatch, capsys, name, schema, arguments, says):
    given = [argument.format(own=own) for argument in arguments]
    assert refused(monkeypatch, capsys, schema, name, *given).startswith(f"error: {says}")


def test_a_folder_of_recipes_that_is_not_there_is_an_error():
    with pytest.raises((UserError, Exception), match="nowhere"):
        cli.configuration(["-cd", "/nowhere", "+recipe=plain"])
