"""What somebody meets who types `starling`: lists, help, flags anywhere, and what a mistyped word may have meant."""

import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from schemas import SCHEMAS

import starling_train
from starling_train import cli
from starling_train.__main__ import listed, main, unknown
from starling_train.cli import help_page
from starling_train.config import conf_files
from starling_train.config.fields import nearest, walk
from starling_train.listing import commands

FILE_OF = {name: "config" if name == "ppo" else name for name in SCHEMAS}
SCREEN = 24


def said(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `starling ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["starling", *arguments])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    return code, *capsys.readouterr()


def refused(monkeypatch, capsys, *arguments) -> str:
    code, out, error = said(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1, error
    return error.removeprefix("error: ").strip()


# the list


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_they_are_listed_with_a_line_each(arguments, monkeypatch, capsys):
    code, out, error = said(monkeypatch, capsys, *arguments)
    assert (code, error) == (0, "") and len(out.splitlines()) <= SCREEN
    names = re.findall(r"^  (\w+) +\S", out, re.M)
    assert [*commands()] == [name for name in names if name != "starling"] and {*SCHEMAS, "toy"} <= set(names)


def test_every_command_says_in_its_first_line_what_it_takes_and_does():
    known = commands()
    package = Path(starling_train.__file__).parent
    files = {path.stem for path in package.glob("*.py") if "\n    main()\n" in path.read_text()}
    assert files - {"__main__"} <= known.keys()
    assert next(iter(known)) == "ppo"
    for command in known.values():
        assert command.does and len(f"  {command.name:<14}{command.does}") < 100
    assert known["ppo"].takes == "+recipe=NAME" and known["snr"].takes == "model.path=DIR"


def test_a_list_takes_no_time():
    """Neither torch nor Hydra is imported."""
    code = (
        "import sys; sys.argv = ['starling']; from starling_train.__main__ import main; main(); "
        "sys.exit(str({'torch', 'hydra', 'omegaconf', 'transformers'} & sys.modules.keys() or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("starling ") and not done.stderr.strip()


@pytest.mark.parametrize("arguments", [["--version"], ["ppo", "--version"], ["toy", "--version"]])
def test_the_version_is_ours(arguments, monkeypatch, capsys):
    assert said(monkeypatch, capsys, *arguments) == (0, f"starling {starling_train.__version__}\n", "")


@pytest.mark.parametrize("name,meant", [
    ("pppo", "ppo"), ("serve-reward", "serve_reward"), ("eval", "evaluate"), ("xyzzy", None),
])  # fmt: skip
def test_an_unknown_command_is_told_with_the_one_that_is_meant(name, meant, monkeypatch, capsys):
    error = refused(monkeypatch, capsys, name)
    assert error.startswith(f"{name}: there is no such command; ") and ", ".join(commands()) in error
    assert (f"did you mean {meant}? " in error) if meant else ("did you mean" not in error)


def test_settings_without_a_command_are_told_where_they_belong():
    assert unknown("+recipe=toy", commands()).startswith(
        "+recipe=toy: a command comes first; use starling COMMAND +rec"
    )


def test_starling_ppo_is_the_command_ppo(monkeypatch, capsys):
    code, out, error = said(monkeypatch, capsys, "ppo", "+recipe=toy", "seed=3", "--cfg", "job")
    assert (code, error) == (0, "")
    monkeypatch.setattr("sys.argv", ["ppo", "+recipe=toy", "seed=3", "--cfg", "job"])
    cli.command(lambda config: None)(pytest.fail)()
    assert capsys.readouterr().out == out and "seed: 3" in out


# help


def helped(name: str) -> list[str]:
    return help_page.short(FILE_OF[name], SCHEMAS[name][0]).splitlines()


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_is_two_screens_that_say_how_to_begin(name):
    lines = helped(name)
    assert len(lines) <= 2 * SCREEN and max(map(len, lines)) <= help_page.WIDTH
    assert lines[0].startswith(f"starling {name}: ") and any(line.startswith("Usage: ") for line in lines[:4])
    assert any(line.split()[:1] == ["--help-all"] for line in lines[-5:])
    assert set(help_page.KEYS.get(name, ())) <= {key for key, *_ in walk(SCHEMAS[name][0]())}


@pytest.mark.parametrize("name,first,others", [
    ("ppo", "toy", {"debug", "small", "small_16gpu", "small_24gb", "small_48gb", "smol", "smol_grpo",
                     "starling_alpha", "starling_beta", "laser_beta", "toy_lora"}),
    ("dpo", "toy_dpo", {"laser_dpo", "laser_qlora", "smol_dpo"}), ("rm", "toy_rm", {"smol_rm", "starling_rm_7b"}),
    ("laser", "toy_laser", {"rank_beta", "toy", "small", "small_16gpu", "small_24gb", "small_48gb", "toy_lora",
                            "smol", "smol_grpo", "debug", "starling_alpha",
                            "starling_beta", "laser_beta"}),
])  # fmt: skip
def test_help_lists_the_recipes_that_the_command_takes(name, first, others):
    lines = helped(name)
    begin = next(number for number, line in enumerate(lines) if line.startswith("Recipes: ")) + 1
    listed = [line.split()[0] for line in lines[begin : lines.index("", begin)]]
    assert listed[0] == first and set(listed[1:]) == others


@pytest.mark.parametrize("name", help_page.OWN_MODEL)
def test_help_says_that_a_recipe_is_not_needed(name):
    assert f"       starling {name} model.path=DIR data.path=FILE [section.key=value ...]" in helped(name)


def test_plan_takes_the_recipes_of_what_it_plans():
    lines = "\n".join(helped("plan"))
    assert all(f"\n  {name} " in lines for name in ("toy", "toy_dpo", "toy_rm", "starling_rm_7b"))
    assert "\n  toy_laser " not in lines


def test_help_comes_whatever_else_is_given(monkeypatch, capsys):
    code, out, error = said(monkeypatch, capsys, "ppo", "+recipe=nothing", "nonsense", "--help")
    assert (code, error, out.splitlines()) == (0, "", helped("ppo"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_whole_help_is_the_configuration_with_a_comment_a_key(name):
    config = SCHEMAS[name][0]()
    text = help_page.whole(FILE_OF[name], config)
    assert yaml.safe_load(text) == asdict(config)
    for key, item, _, _ in walk(config):
        assert key.rpartition(".")[2] + ":" in text and item.metadata["doc"].split()[0] in text


def test_the_whole_help_has_the_values_of_the_command_line(monkeypatch, capsys):
    code, out, error = said(monkeypatch, capsys, "ppo", "--help-all", "+recipe=debug", "algorithm.gamma=0.5")
    written = yaml.safe_load(out)
    assert (code, error, written["algorithm"]["gamma"], written["prepare"]) == (0, "", 0.5, "toy")
    assert written["model"]["path"].endswith("/policy") and "# of future rewards" not in written


# flags


@pytest.mark.parametrize("arguments", [
    ["--cfg", "job", "+recipe=debug", "seed=3"], ["+recipe=debug", "--cfg", "job", "seed=3"],
    ["+recipe=debug", "seed=3", "--cfg=job"], ["seed=3", "-c", "job", "+recipe=debug"],
    ["seed=3", "-c", "job", "--resolve", "+recipe=debug", "-p", "_global_"],
])  # fmt: skip
def test_flags_may_stand_anywhere(arguments, monkeypatch, capsys):
    code, out, error = said(monkeypatch, capsys, "ppo", *arguments)
    written = yaml.safe_load(out)
    assert (code, error, written["seed"], written["prepare"]) == (0, "", 3, "toy")


@pytest.mark.parametrize("flag,meant", [
    ("--hlp", "--help"), ("--learning-rate=3", "optim.learning_rate=3"), ("--learning_rate", "optim.learning_rate=..."),
    ("--dry-run", "dry_run=true"), ("--model.path=x", "model.path=x"), ("--resume", None),
])  # fmt: skip
def test_a_key_given_as_a_flag_is_told_how_keys_are_written(flag, meant, monkeypatch, capsys):
    error = refused(monkeypatch, capsys, "ppo", "+recipe=debug", flag)
    assert error.startswith(f"unrecognized arguments: {flag}; ") and error.endswith("see --help")
    assert (f"did you mean {meant}? " in error) if meant else ("did you mean" not in error)


# what may have been meant


@pytest.mark.parametrize("command,arguments,says", [
    ("ppo", "learning_rate=1", "learning_rate: no such key; did you mean optim.learning_rate? use one of: name"),
    ("ppo", "freese=none", "freese: no such key; did you mean freeze? use one of: "),
    ("ppo", "freeze.top_prcent=3", "freeze.top_prcent: no such key; did you mean freeze.top_percent? use one of: "),
    ("ppo", "~freeze.scann", "freeze.scann: no such key; did you mean freeze.scan? use one of: method"),
    ("ppo", "freeze.xyzzy=1", "freeze.xyzzy: no such key; use one of: method"),
    ("dpo", "beta=3", "beta: no such key; did you mean dpo.beta? use one of: "),
    ("ppo", "+recip=toy", "recip: no such key; write +recipe=NAME, with a plus"),
    ("ppo", "freeze=last_layer", "freeze: there is no 'last_layer'; did you mean last_layers? use one of: last_l"),
    ("ppo", "+recipe=toyy", "recipe: there is no 'toyy'; did you mean toy? use one of: debug, laser_beta, small, "),
    ("dpo", "+recipe=laserdpo", "recipe: there is no 'laserdpo'; did you mean laser_dpo? use one of: laser_dpo"),
    ("ppo", "+recipe=[toy,smal]", "recipe: there is no 'smal'; did you mean small? use one of: debug, laser_beta"),
    ("ppo", "+recipe/team=x", "recipe/team: there is no such folder; give -cd DIR, where DIR/recipe/team/NAME.yaml is"),
    ("ppo", "-cd /nowhere +recipe=x", "-cd: there is no directory /nowhere; give the one that holds recipe/NAME.yaml"),
    ("ppo", "+recipe=debug freeze.method=last_layer",
     "freeze.method: 'last_layer' is not an option; did you mean last_layers? use one of: snr, layers"),
    ("ppo", "+recipe=debug evaluation.suites=[perplexty]",
     "evaluation.suites: 'perplexty' is not a suite; did you mean perplexity? use some of: "),
    ("evaluate", "+recipe=debug suites=[mtbench]", "suites: 'mtbench' is not a suite; did you mean mt_bench? use"),
    ("compare", "+recipe=debug compare.only=[radom]",
     "compare.only: there is no strategy 'radom'; did you mean random? use snr, "),
    ("ppo", "model=./mine", "model: there is no option './mine'; write model.path=./mine"),
    ("ppo", "reward=/a/b", "reward: there is no option '/a/b'; write reward.path=/a/b"),
    ("ppo", "data=prompts.jsonl", "data: there is no option 'prompts.jsonl'; write data.path=prompts.jsonl"),
    ("ppo", "freeze=lora", "freeze: there is no 'lora'; write freeze.adapter=lora; or use one of: last_layers"),
    ("ppo", "+recipe=debug optim=1e-3", "optim: is a section and takes no value; set one of its keys: optim.learning"),
    ("ppo", "algorithm.kl=0.1", "algorithm.kl: is a section and takes no value; set one of its keys: algorithm.kl.c"),
])  # fmt: skip
def test_a_mistyped_word_is_told_with_the_one_that_is_meant(command, arguments, says, monkeypatch, capsys):
    assert refused(monkeypatch, capsys, command, *arguments.split()).startswith(says)


def test_a_recipe_that_lies_beside_its_folder_is_told_where_it_belongs(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    error = refused(monkeypatch, capsys, "ppo", "-cd", str(tmp_path), "+recipe=mine")
    assert error == f"recipe: there is no 'mine'; put {tmp_path}/mine.yaml into {tmp_path}/recipe/"


@pytest.mark.parametrize("word,likeness,expected", [
    ("snrr", 0.7, "snr"), ("SNR", 0.7, "snr"), ("nonesuch", 0.7, None), ("nonesuch", 0.6, "none"), ("", 0.7, None),
])  # fmt: skip
def test_the_nearest_word(word, likeness, expected):
    """difflib's ratio is twice the letters in common by the letters of both: `nonesuch`, `none`: 8 / 12."""
    assert nearest(word, ["snr", "none"], likeness) == expected


# no model, no recipe


@pytest.mark.parametrize("command,arguments,key,recipes", [
    ("ppo", "", "model.path", "toy, toy_lora, debug, "), ("ppo", "reward.path=x", "model.path", "toy, toy_lora"),
    ("dpo", "", "model.path", "toy_dpo, laser_dpo, laser_qlora"),
    ("rm", "seed=3", "model.path", "toy_rm, smol_rm, starling_rm"),
    ("plan", "", "model.path", "toy, toy_dpo, "), ("snr", "", "model.path", "toy, "),
    ("laser", "", "model.path", "toy_laser"), ("compare", "", "model.path", "toy, "),
    ("evaluate", "suites=[perplexity] perplexity.path=x", "model.path", "toy, "),
    ("score", "input=x output=y", "reward.path", None), ("serve_reward", "", "reward.path", None),
    ("evaluate", "suites=[preference] preference.path=x", "reward.path", None),
])  # fmt: skip
def test_who_names_neither_model_nor_recipe_is_told_what_there_is(
    command, arguments, key, recipes, monkeypatch, capsys
):
    """The default would ask the hub for a model of 7B."""
    error = refused(monkeypatch, capsys, command, *arguments.split())
    assert error.startswith(f"{key}: not set; give ")
    assert (
        (f"or start from a recipe: +recipe=NAME with one of {recipes}" in error) if recipes else "recipe" not in error
    )


@pytest.mark.parametrize("path,line", [
    ("runs/smol_rm/reward", "starling rm +recipe=smol_rm"), ("runs/smol/policy", "starling ppo +recipe=smol"),
    ("elsewhere/smol_rm/reward", None), ("runs/mine/reward", None),
])  # fmt: skip
def test_who_lacks_what_a_recipe_makes_is_told_the_recipe(path, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"messages": []}')
    error = refused(monkeypatch, capsys, "score", "input=rows.jsonl", "output=scores.jsonl", f"reward.path={path}")
    assert error.startswith(f"reward.path: no such directory: {path}; give a ")
    assert error.endswith(f", or make it: {line}" if line else "hub id")


@pytest.mark.parametrize("command,arguments,reward", [
    ("ppo", "model.path=here", "berkeley-nest/Starling-RM-7B-alpha"),
    ("ppo", "model=openchat_3_5_0106 reward.path=there", "there"),
    ("ppo", "++model.path=here reward=starling_34b", None),
    ("score", "reward.path=there input=x output=y", "there"), ("score", "reward=starling_34b input=x output=y", None),
    ("ppo", "-cn {own}", "berkeley-nest/Starling-RM-7B-alpha"),
])  # fmt: skip
def test_who_names_a_model_needs_no_recipe(command, arguments, reward, tmp_path, monkeypatch):
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [config, _self_]\nseed: 3\n")
    given = arguments.format(own="own").split() + (["-cd", str(tmp_path)] if "{own}" in arguments else [])
    schema, check = SCHEMAS[command]
    monkeypatch.setattr("sys.argv", [command, *given])
    got = []
    cli.command(check, schema, FILE_OF[command])(got.append)()
    assert got[0].reward.path == (reward or "Nexusflow/Starling-RM-34B")
    assert got[0].model.path or command == "score"


# a pipe that nobody reads


@pytest.mark.parametrize("arguments", [[], ["ppo", "--help"], ["ppo", "--help-all", "+recipe=debug"],
                                       ["ppo", "+recipe=debug", "--cfg", "job"]])  # fmt: skip
def test_a_reader_that_has_gone_makes_no_traceback(arguments, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        code, _, error = said(monkeypatch, capsys, *arguments)
        assert (code, error) == (128 + 13, "")
        print("no error any more, as at the interpreter's end", file=stdout, flush=True)


def test_another_pipe_that_breaks_is_an_error_of_ours(monkeypatch):
    def breaks(config):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.argv", ["ppo", "model.path=here"])
    with pytest.raises(BrokenPipeError):
        cli.command(lambda config: None)(breaks)()


# completion


@pytest.mark.parametrize("line,expected", [
    ("starling pp", ["ppo"]), ("starling s", ["snr", "score", "serve_reward"]),
    ("starling ppo freeze=la", ["freeze=last_layers", "freeze=layers"]),
    ("starling ppo +recipe=toy_l", ["+recipe=toy_laser", "+recipe=toy_lora"]),
    ("starling dpo dpo.be", ["dpo.beta="]), ("starling nothing dpo.be", []), ("starling toy x", []),
    ("starling report x", []),
])  # fmt: skip
def test_a_line_is_completed(line, expected, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    code, out, error = said(monkeypatch, capsys, "-sc", "query=bash")
    assert (code, error, out.split()) == (0, "", expected)


def test_bash_completes_the_installed_script(tmp_path):
    """With a script like the one that pip makes."""
    script = tmp_path / "starling"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m starling_train "$@"\n')
    script.chmod(0o755)
    line = "starling ppo rollout=sl"
    code = (
        'eval "$(starling -sc install=bash)"; complete -p starling; '
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD=2; COMP_WORDS=({line}); hydra_bash_completion; "
        'echo "got ${COMPREPLY[*]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False
    )
    assert "-F hydra_bash_completion starling" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "got rollout=slots"


def test_the_list_is_made_of_what_is_there():
    known = commands()
    assert all(f"  {name} " in listed(known) for name in known)
    assert conf_files.FILES.keys() - {"config", "plan_dpo", "plan_rm"} <= known.keys()
