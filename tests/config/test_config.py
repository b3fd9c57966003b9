"""Configuration: what ships composes, says what it promises, and refuses what is wrong in one line."""

import re
from dataclasses import asdict
from functools import reduce
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf.errors import OmegaConfBaseException

from starling_train import cli
from starling_train.config import compare, conf_files, dpo, evaluate, export, laser, plan, ppo, rm
from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError, changed, check_values, walk
from starling_train.config.ppo import PpoConfig, check
from starling_train.config.rm import RmConfig

RECIPES = sorted(path.stem for path in cli.find("recipes").glob("*.yaml"))
OF_PPO = [
    "debug", "laser_beta", "small", "small_16gpu", "small_24gb", "small_48gb", "smol", "smol_grpo", "starling_alpha",
    "starling_beta", "toy", "toy_lora",
]  # fmt: skip
# what a recipe's first line can begin with -> the command's configuration file, schema and check
COMMANDS = {
    "ppo": ("config", PpoConfig, ppo.check),
    "rm": ("rm", RmConfig, rm.check),
    "dpo": ("dpo", DpoConfig, dpo.check),
    "evaluate": ("evaluate", evaluate.EvaluateConfig, evaluate.check),
    "plan": ("plan", plan.PlanConfig, plan.check),
    "laser": ("laser", laser.LaserConfig, laser.check),
    "compare": ("compare", compare.CompareConfig, compare.check),
    "export": ("export", export.ExportConfig, export.check),
}
GROUPS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(cli.find("conf").glob("*/*.yaml"))
    if path.parent.name != "recipe"
]


def composed(*overrides: str, command: str = "ppo") -> PpoConfig:
    name, schema, _ = COMMANDS[command]
    cli.store_recipes(list(overrides))
    with initialize_config_dir(str(cli.find("conf")), version_base="1.3"):
        return cli.typed(compose(name, list(overrides)), schema)


def command_of(recipe: str) -> str:
    """The command that a recipe is for: its first line says `# command: what it is`."""
    first = (cli.find("recipes") / f"{recipe}.yaml").read_text().splitlines()[0]
    found = re.match(r"# ([a-z_]+): \S", first)
    assert found and found[1] in COMMANDS, f"{recipe}.yaml begins with {first!r}, not with `# command: what it is`"
    return found[1]


@pytest.mark.parametrize("name", conf_files.FILES)
def test_conf_composes_to_the_defaults_of_the_dataclasses(name):
    with initialize_config_dir(str(cli.find("conf")), version_base="1.3"):
        assert cli.typed(compose(name), conf_files.FILES[name]) == conf_files.FILES[name]()


def test_conf_is_current():
    """`make conf` writes it."""
    written = {name: (cli.find("conf") / name).read_text() for name in conf_files.render()}
    assert written == conf_files.render()


def test_what_conf_has_besides_are_options_of_a_few_values():
    options = {path.relative_to(cli.find("conf")).as_posix() for path in cli.find("conf").rglob("*.yaml")}
    for name in options - conf_files.render().keys():
        text = (cli.find("conf") / name).read_text()
        assert text.startswith("# ") and "\ndefaults:\n" in text and len(text.splitlines()) < 15, name


@pytest.mark.parametrize("name", conf_files.FILES)
def test_every_key_has_a_comment_and_a_number_its_range(name):
    for key, item, value, _ in walk(conf_files.FILES[name]()):
        assert item.metadata["doc"], key
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert "range" in item.metadata, key


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_is_valid(recipe):
    command = command_of(recipe)
    config = composed(f"+recipe={recipe}", command=command)
    COMMANDS[command][2](config)
    assert config.name == recipe


def test_recipes_are_found_however_they_are_asked_for(tmp_path, monkeypatch):
    """Those that the command line does not name are not read, so what names one without its name must count too."""
    monkeypatch.setenv("WHICH", "toy_lora")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - toy_lora\n")
    plain = cli.configuration(["+recipe=toy_lora"])
    assert (plain.freeze.adapter, plain.prepare) == ("lora", "toy")  # its own, and of the one that it builds on
    for arguments in (
        ["+recipe=[toy_lora]"],
        ["+recipe='toy_lora'"],
        ["+recipe=${oc.env:WHICH}"],
        ["-cd", str(tmp_path), "+recipe=mine"],
        [f"hydra.searchpath=[file://{tmp_path}]", "+recipe=mine"],
    ):
        config = cli.configuration(arguments)
        assert (config.freeze, config.prepare) == (plain.freeze, plain.prepare), arguments


def test_a_recipe_of_another_command_is_refused():
    with pytest.raises(OmegaConfBaseException, match="'rm'"):
        composed("+recipe=toy_rm")
    with pytest.raises(OmegaConfBaseException, match="'reward'"):
        composed("+recipe=small", command="rm")


@pytest.mark.parametrize("option", GROUPS)
def test_every_option_composes(option):
    config = composed(option)
    check_values(config)


@pytest.mark.parametrize("name", conf_files.FILES)
@pytest.mark.parametrize("value", ["x" * 5000, "a\0b"])
def test_what_cannot_be_a_path_is_refused_by_its_key(name, value):
    paths = [key for key, item, _, _ in walk(conf_files.FILES[name]()) if item.metadata.get("path")]
    assert paths
    for key in paths:
        config = conf_files.FILES[name]()
        *sections, last = key.split(".")
        setattr(reduce(getattr, sections, config), last, value)
        with pytest.raises(
            UserError, match=rf"^{key}: '[^\n]*' cannot be a path \([^\n]*\); check it, or give another$"
        ):
            check_values(config)


def test_recipes_stack_and_overrides_win():
    config = composed("+recipe=[toy,small]", "algorithm.steps=3")
    assert (config.name, config.prepare, config.algorithm.steps) == ("small", "toy", 3)


def test_recipes_and_options_exist():
    assert {"toy", "debug", "small", "toy_rm", "starling_rm_7b"} <= set(RECIPES)
    assert {"algorithm=apa", "freeze=last_layers", "reward=starling_34b"} <= set(GROUPS)


def test_small_is_the_real_job():
    config = composed("+recipe=small")
    assert config.model.path == "openchat/openchat-3.5-0106"
    assert config.reward.kind == "starling_7b"
    assert (config.freeze.method, config.freeze.top_percent) == ("snr", 25)
    assert config.data.path == "berkeley-nest/Nectar"


@pytest.mark.parametrize(
    "key,value,says",
    [
        ("freeze.top_percent", 101.0, "from 0 to 100"),
        ("freeze.top_percent", -1.0, "from 0 to 100"),
        ("freeze.top_percent", float("nan"), "out of range"),
        ("freeze.top_percent", 0.0, "selects nothing"),
        ("freeze.method", "lucky", "last_layers"),
        ("algorithm.gamma", 1.5, "from 0 to 1"),
        ("algorithm.steps", 0, "1 or more"),
        ("algorithm.minibatches", 65, "algorithm.prompts_per_step"),
        ("rollout.temperature", 0.0, "or more"),
        ("reward.load_in", "2bit", "null, 8bit, 4bit"),
        ("reward.device_map", "balanced", "null, auto"),
        ("model.path", "", "not set"),
        ("evaluation.suites", ["chess"], "function_calling"),
        ("evaluation.functions", {"gold": "nocolon"}, "package.module:function"),
        ("optim.betas", [0.9], "two numbers"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_that_names_the_key(key, value, says):
    config = PpoConfig()
    section, _, name = key.rpartition(".")
    setattr(getattr(config, section) if section else config, name, value)
    with pytest.raises(UserError) as caught:
        check(config)
    message = str(caught.value)
    assert message.startswith(key) and says in message and "\n" not in message


def test_a_suite_needs_its_files():
    config = PpoConfig()
    config.evaluation.suites = ["function_calling"]
    with pytest.raises(UserError, match=r"^evaluation\.function_calling\.path: not set"):
        check(config)


def test_evaluate_measures_function_calling_as_the_recipe_does_unless_it_is_told():
    config = composed("+recipe=toy", "function_calling.max_new_tokens=9", command="evaluate")
    assert config.function_calling.path == config.evaluation.function_calling.path
    assert (config.function_calling.max_new_tokens, config.evaluation.function_calling.max_new_tokens) == (9, 48)


@pytest.mark.parametrize("value", ["plain", "a b, c", "it's", "\\", "C:\\", "\\'", "[1", "a=b", "{x: 1}", "é'"])
def test_a_quoted_value_is_read_back_as_it_was(value):
    config = cli.configuration(["+recipe=debug", f"name={cli.quoted(value)}"])
    assert (config.name, config.prepare) == (value, "toy")


def test_the_written_yaml_reads_back():
    assert yaml.safe_load(yaml.safe_dump(asdict(PpoConfig()))) == asdict(PpoConfig())


@pytest.mark.parametrize(
    "argument,says",
    [
        ("+recipe=nope", f"recipe: there is no 'nope'; use one of: {', '.join(OF_PPO)}"),
        ("model.pth=x", "model.pth: no such key; did you mean model.path? use one of: path"),
        ("modl.path=x", "modl.path: no such key"),
        (
            "algorithm.kl.tgt=1",
            "algorithm.kl.tgt: no such key; did you mean algorithm.kl.target? use one of: coefficient",
        ),
        ("algorithm.steps=many", "algorithm.steps: "),
        ("freeze=zz", "freeze: there is no 'zz'"),
        ("recipe=toy", "+recipe=NAME"),
        ("freeze.top_percent=200", "freeze.top_percent: 200 is out of range"),
        ("name=[1", "name=[1"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argument, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ppo", argument])
    with pytest.raises(SystemExit) as stopped:
        cli.command(check)(pytest.fail)()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ppo", "freeze.top_percent=200", "debug=true"])
    with pytest.raises(UserError):
        cli.command(check)(pytest.fail)()


def test_private_recipes_are_found(tmp_path, monkeypatch):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\nname: mine\nseed: 7\n")
    monkeypatch.setattr("sys.argv", ["ppo", "-cd", str(tmp_path), "+recipe=mine"])
    got = []
    cli.command(check)(got.append)()
    assert (got[0].name, got[0].seed) == ("mine", 7)


def test_paths_of_conf_and_recipes_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(cli.find("conf"), Path) and cli.find("conf").is_absolute()
    assert (cli.find("recipes") / "toy.yaml").is_file()


@pytest.mark.parametrize(
    "section,key,value,says",
    [
        ("dpo", "loss", "hinge", "ipo"),
        ("dpo", "beta", 0.0, "or more"),
        ("dpo", "pairs", "worst", "best_random"),
        ("dpo", "label_smoothing", 0.6, "from 0 to 0.5"),
        ("dpo", "label_smoothing", 0.5, "give less"),
        ("dpo", "max_length", 1024, "data.max_prompt_tokens=1024"),
        ("data", "path", "", "not set"),
        ("evaluation", "responses", 257, "data.eval_prompts=256"),
        ("evaluation", "suites", ["chess"], "function_calling"),
        ("optim", "betas", [1.0, 0.9], "two numbers"),
        ("optim", "critic_learning_rate", 1e-3, "no critic"),
    ],
)
def test_a_wrong_value_of_dpo_is_told_in_one_line(section, key, value, says):
    config = DpoConfig()
    setattr(getattr(config, section), key, value)
    with pytest.raises(UserError) as caught:
        dpo.check(config)
    message = str(caught.value)
    assert message.startswith(f"{section}.{key}: ") and says in message and "\n" not in message


def test_label_smoothing_is_the_sigmoid_losss():
    config = DpoConfig()
    config.dpo.loss, config.dpo.label_smoothing = "ipo", 0.1
    with pytest.raises(UserError, match=r"^dpo\.label_smoothing: dpo\.loss=ipo"):
        dpo.check(config)


@pytest.mark.parametrize(
    "section,key,value,says",
    [
        ("rm", "kind", "server", "starling_34b"),
        ("rm", "epochs", 0.0, "or more"),
        ("rm", "fresh", True, "freeze.method=snr"),
        ("rm", "trailing_newline", True, "starling_7b has none"),
        ("data", "path", "", "not set"),
        ("optim", "warmup_percent", 101.0, "from 0 to 100"),
        ("optim", "betas", [1.0, 0.9], "two numbers"),
    ],
)
def test_a_wrong_value_of_rm_is_told_in_one_line(section, key, value, says):
    config = RmConfig()
    config.freeze.method = "snr"
    setattr(getattr(config, section), key, value)
    with pytest.raises(UserError) as caught:
        rm.check(config)
    message = str(caught.value)
    assert message.startswith(f"{section}.{key}: ") and says in message and "\n" not in message


def test_what_may_change_between_two_starts_of_a_run():
    written = yaml.safe_load(yaml.safe_dump(asdict(PpoConfig())))
    config = PpoConfig(name="other", run_dir="there", debug=True)
    config.algorithm.steps = config.evaluation.every = config.cluster.threads = config.reward.connections = 7
    config.evaluation.function_calling.cases = 7
    assert changed(config, written) == []
    config.seed = config.algorithm.epochs = config.freeze.lora.rank = 7
    assert changed(config, written) == ["seed", "freeze.lora.rank", "algorithm.epochs"]


def test_a_run_goes_on_when_a_default_has_changed_that_means_the_same():
    written = asdict(PpoConfig())
    written["rollout"]["stop_strings"] = ["GPT4 Correct User:", "GPT4 Correct Assistant:"]
    config = PpoConfig()
    assert config.rollout.stop_strings is None and changed(config, written) == []
    config.rollout.stop_strings = ["\n"]
    assert changed(config, written) == ["rollout.stop_strings"]
    written["rollout"]["stop_strings"] = []
    assert changed(PpoConfig(), written) == ["rollout.stop_strings"]


def test_a_run_goes_on_when_the_configuration_has_got_a_key_since():
    written = asdict(RmConfig())
    written["optim"]["head_learning_rate"] = written["optim"].pop("critic_learning_rate")
    del written["optim"]["eight_bit"]
    config = RmConfig()
    assert changed(config, written) == []
    config.optim.eight_bit, config.optim.critic_learning_rate = True, 0.5
    assert changed(config, written) == ["optim.critic_learning_rate", "optim.eight_bit"]
    written["optim"]["head_learning_rate"] = 0.5
    assert changed(config, written) == ["optim.eight_bit"]


def test_a_key_that_a_run_has_not_written_had_the_value_of_the_one_that_it_follows():
    config = PpoConfig()
    config.rollout.max_new_tokens = config.algorithm.loss_length = 48
    written = asdict(config)
    del written["algorithm"]["loss_length"]
    assert changed(config, written) == []
    config.algorithm.loss_length = 50
    assert changed(config, written) == ["algorithm.loss_length"]


@pytest.mark.parametrize("key", ["optim.head_learning_rate", "+optim.head_learning_rate"])
def test_a_former_name_of_a_key_works_and_is_reported(key, capsys):
    config = cli.configuration([f"{key}=0.25"], RmConfig, "rm")
    assert config.optim.critic_learning_rate == 0.25
    assert capsys.readouterr().err == (
        "optim.head_learning_rate: is called optim.critic_learning_rate now; please use that\n"
    )


def test_a_former_name_of_a_key_works_in_a_recipe_and_the_command_line_wins(tmp_path, capsys):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "old.yaml").write_text("# @package _global_\noptim:\n  head_learning_rate: 0.25\n")
    arguments = ["-cd", str(tmp_path), "+recipe=old"]
    assert cli.configuration(arguments, RmConfig, "rm").optim.critic_learning_rate == 0.25
    assert "optim.critic_learning_rate now" in capsys.readouterr().err
    assert cli.configuration([*arguments, "optim.critic_learning_rate=0.5"], RmConfig, "rm").optim == (
        cli.configuration(["optim.critic_learning_rate=0.5"], RmConfig, "rm").optim
    )
