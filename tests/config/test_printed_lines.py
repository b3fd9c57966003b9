"""Every command line that a document prints: ours are read as their command reads them, others are run by a test.

A line of ours is composed and checked, up to what needs the models themselves. For a line of another program
`ELSEWHERE` names the test that runs it, or what it must name; a new line that nobody covers fails.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from schemas import SCHEMAS

from starling_train import cli
from starling_train.cli.packaged import RECIPE_HEAD
from starling_train.config import conf_files, plan
from starling_train.config.plan import PlanDpoConfig, PlanRmConfig
from starling_train.listing import commands

ROOT = cli.find("recipes").parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "recipes/*.md", "recipes/*.yaml", "slurm/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
PROGRAMS = (
    "python", "python3", "make", "starling", "torchrun", "accelerate", "sbatch", "srun", "bash", "sh", "source", "eval",
    "pip", "git", "curl", "docker", "cmake", "hf", "vllm", "ollama", "transformers", "llama-server", "llama-cli",
    "text-embeddings-router", "tensorboard", "mlflow", "trackio", "wandb", "scancel", "squeue", "scontrol",
)  # fmt: skip
SHELLS = ("sh", "bash", "shell", "console")
OURS = re.compile(
    r"(?:(?:torchrun|accelerate launch) .*?-m starling_train[. ]|python3? -m starling_train[. ]|starling )"
    r"(?P<command>\w+)(?P<arguments>.*)"
)
NAMES = ("accelerate launch", "python -m starling_train...")  # of what is started; no line to type
# what a line of another program begins with -> the file that runs it, and a word of it there
ELSEWHERE = (
    (r"make [a-z-]+( |$)", "Makefile", ""),  # the target is looked for
    (r"(sbatch|bash|source) .*slurm/", "tests/slurm/jobs.py", "sbatch"),
    (r"sbatch \.\.\.", "tests/slurm/jobs.py", "sbatch"),
    (r"scancel ", "tests/slurm/test_jobs_together.py", "scancel"),
    (r"scontrol ", "tests/slurm/test_two_nodes.py", "scontrol"),
    (r"pip install (-e )?'?[.\w-]*\[", "pyproject.toml", "optional-dependencies"),  # the extra is looked for
    (r"pip install \.$", "pyproject.toml", "hatchling"),
    (r"pip install --no-deps --target DIR bfcl-eval", "tests/bfcl_eval_process.py", "STARLING_BFCL_EVAL"),
    (r"python -m pytest tests/\S+$", "tests/evals/test_bfcl_eval.py", ""),  # the file is looked for
    (r"python benchmarks/\S+\.py", "benchmarks", ""),  # likewise
    (r"starling( --\w+)?$", "tests/config/test_entry.py", "--version"),
    (r'eval "\$\(starling -sc install=bash\)"', "tests/config/test_entry.py", "-sc install=bash"),
    (r"transformers serve", "tests/served_model.py", "serve"),
    (r"vllm serve|python -m vllm\.entrypoints", "tests/commands/test_serving.py", "vllm"),
    (r"python llama\.cpp/convert_hf_to_gguf\.py", "tests/commands/test_serving.py", "convert_hf_to_gguf.py"),
    # not run, for no package has them: a test reads the file that they read
    (r"llama-server -m|ollama (create|run)", "tests/commands/test_serving.py", "GGUFReader"),
    # not run: a server that answers as its documents say stands in for it
    (r"python -m sglang\.launch_server", "tests/rewards/test_protocols.py", "sglang"),
    # programs that show what a tracker has written: a test reads it with the tracker's own library
    (r"(wandb sync|tensorboard --logdir|mlflow ui|trackio show|pip install mlflow$)", "tests/run/test_tracker.py", ""),
    (r"text-embeddings-router", "tests/rewards/test_protocols.py", "tei"),
)
PLACEHOLDERS = (
    (r"recipe=NAME", "recipe=small"), (r"processes=N\b", "processes=2"), (r"\bCOMMAND\b", "ppo"),
    (r"reward\.url=(?=\s|$)|reward\.url=\.\.\.", "reward.url=http://127.0.0.1:1"), (r",\.\.\.\]", "]"),
    (r"suites=\[\.\.\.\]", "suites=[perplexity] perplexity.path=text.txt"), (r"\b(section\.)?key=value\b", ""),
    (r"[\[\]]?\.\.\.\]?(?=\s|$)", ""), (r"--cfg job", ""),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One command line of a document, and where it stands.

    before: the line of ours above it, for `... arguments`. refused: what the document says that it ends in.
    """

    document: str
    number: int
    text: str
    before: str = ""
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.document}:{self.number}: {self.text}"


def code(text: str) -> Iterator[tuple[int, str, bool]]:
    """Number and text of every line of code, whether it must be a command's; and every piece of code within a text."""
    fence: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = (line.strip()[3:].split() or [""])[0] if fence is None else None
        elif fence is not None:
            yield number, line.strip(), fence in SHELLS
        elif re.match(r" {4,}\S", line):
            yield number, line.strip(), False
        else:
            yield from ((number, found.strip(), False) for found in re.findall(r"`([^`]+)`", line))


def of_a_table(text: str) -> str:
    """A table of commands, `.snr model.path=DIR`, whose head has what stands in front of the dot."""
    return f"python -m starling_train{text}" if re.match(r"\.\w+ \S", text) else text


def lines(document: Path) -> Iterator[Line]:
    text = re.sub(r"\\\n\s*", " ", document.read_text())
    if document.suffix == ".yaml":  # the comment at its beginning
        text = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    before, pieces = "", list(code(text))
    for (number, found, is_shell), (_, following, _) in pairwise([*pieces, (0, "", False)]):
        stripped = of_a_table(re.sub(r"^(\$ )?([A-Z_]+=\S+ )*", "", found))
        stripped = re.sub(r"\s+(#|>|\||&).*", "", stripped)
        if stripped in NAMES:
            continue
        first = stripped.split(" ")[0]
        if stripped.startswith("... ") or OURS.match(stripped):
            refused = following.removesuffix("...") if following.startswith("error: ") else ""
            line = Line(document.relative_to(ROOT).as_posix(), number, stripped, before, refused)
            before = stripped if OURS.match(stripped) else before
            yield line
        elif stripped and (is_shell or (first in PROGRAMS and " " in stripped) or stripped == "starling"):
            yield Line(document.relative_to(ROOT).as_posix(), number, stripped)


ALL = [line for document in DOCUMENTS for line in lines(document)]
OF_OURS = [line for line in ALL if line.text.startswith("... ") or OURS.match(line.text)]
OF_OTHERS = [line for line in ALL if line not in OF_OURS]


def unique(found: list[Line]) -> list:
    return [pytest.param(line, id=str(line)) for line in {line.text + line.before: line for line in found}.values()]


def owner(arguments: str) -> str:
    """The command that a line without one is for: its recipe's."""
    name = re.search(r"\+recipe=(\w+)", arguments)
    path = ROOT / "recipes" / f"{name[1] if name else 'small'}.yaml"
    return RECIPE_HEAD.match(path.read_text())[1]


def read(line: Line) -> tuple[str, list[str]]:
    """Command and arguments of a line of ours, with something in place of what a reader puts in."""
    text = line.text.removeprefix("... ")
    if line.text.startswith("... ") and "+recipe=" not in text:
        text = f"{line.before} {text}"
    if not OURS.match(text):
        text = f"starling {owner(text)} {text}"
    for placeholder, value in PLACEHOLDERS:
        text = re.sub(placeholder, value, text)
    found = OURS.match(text)
    return found["command"], shlex.split(found["arguments"].rstrip(").,;"))


def test_the_documents_print_command_lines():
    assert len(OF_OURS) > 40 and len(OF_OTHERS) > 10
    assert {read(line)[0] for line in OF_OURS} >= {"ppo", "dpo", "rm", "compare", "plan", "laser", "evaluate", "snr"}
    assert {line.document for line in ALL} >= {
        "README.md",
        "docs/evaluation.md",
        "recipes/README.md",
        "slurm/README.md",
    }


@pytest.mark.parametrize("line", unique(OF_OURS))
def test_a_line_of_ours_is_accepted(line, monkeypatch, capsys, tmp_path):
    """Up to what needs the models themselves."""
    command, arguments = read(line)
    assert command in commands(), f"{line}: there is no such command"
    if {"--help", "--help-all", "--version", "-h"} & set(arguments) or not arguments:
        return
    if command not in SCHEMAS:
        tests = [path.name for path in (ROOT / "tests" / "commands").glob(f"test_{command}*.py")]
        assert tests or (ROOT / "starling_train" / command / "__main__.py").is_file(), f"{line}: no test runs it"
        return
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("name: mine\n")
    arguments = [str(tmp_path) if argument == "DIR" else argument for argument in arguments]
    schema, check = SCHEMAS[command]
    name = "config" if command == "ppo" else command
    if command == "plan":
        of = cli.command_of_recipe(arguments)
        schema, check, name = {
            "dpo": (PlanDpoConfig, plan.check_of_dpo, "plan_dpo"), "rm": (PlanRmConfig, plan.check_of_rm, "plan_rm"),
        }.get(of, (schema, check, name))  # fmt: skip
    monkeypatch.setattr("sys.argv", [command, *arguments])
    monkeypatch.setattr("starling_train.assets.ensure", lambda name: None)
    accepted = []
    try:
        cli.command(check, schema, name)(accepted.append)()
    except SystemExit:
        told = capsys.readouterr().err
        assert line.refused and told.startswith(line.refused), f"{line}\n  {told}"
    assert len(accepted) == (not line.refused), line


@pytest.mark.parametrize("line", unique(OF_OTHERS))
def test_a_line_of_another_program_is_run_by_a_test(line):
    rows = [row for row in ELSEWHERE if re.match(row[0], line.text)]
    assert rows, f"{line}: nobody runs it; compose it as a line of ours, or add a row to ELSEWHERE with the test"
    _, file, word = rows[0]
    path = ROOT / file
    assert path.exists() and (path.is_dir() or word in path.read_text()), f"{line}: {file} does not have {word!r}"
    if target := re.match(r"make ([a-z-]+)", line.text):
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.M), line
    if extra := re.search(r"pip install (?:-e )?'?[.\w-]*\[([\w,]+)\]", line.text):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extra[1].split(",")) <= known.keys(), line
    for named in re.findall(r"(?:slurm|benchmarks|tests)/[\w/.]+\.\w+", line.text):
        assert (ROOT / named).is_file(), f"{line}: there is no {named}"


def test_the_schemas_are_those_of_the_commands():
    assert SCHEMAS.keys() >= {"ppo" if name == "config" else name for name in conf_files.FILES} - {
        "plan_dpo",
        "plan_rm",
    }
