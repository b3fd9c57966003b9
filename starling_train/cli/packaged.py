"""What the package brings along: `conf/` and `recipes/`, and how Hydra gets to know the recipes."""

import functools
import re
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from starling_train import assets
from starling_train.config.conf_files import FILES

# -cd, -cp, -cn in all their spellings, and Hydra's search path: files of the user's, which may build on any recipe
BRINGS_FILES = re.compile(r"--?c(?!fg)|[+~]*hydra[./]")
RECIPE_HEAD = re.compile(r"# (\w+): (.*)")  # the command that a recipe is for, and what it is


def find(folder: str) -> Path:
    """Return the directory `conf` or `recipes`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / folder, package.parent / folder
    return inside if inside.is_dir() else beside


def recipes_of(config_name: str) -> dict[str, str]:
    """Return the recipes that a command takes: what each one is, by name; its own first, and of these the toy's.

    config_name: the file of `conf/` that the command starts from.
    """
    found = []
    for path in find("recipes").glob("*.yaml"):
        owner, what = _head(path)
        file = {"ppo": "config"}.get(owner, owner)
        # plan takes the recipes of every command that it plans for
        if issubclass(FILES[config_name], FILES[file]) or (config_name == "plan" and f"plan_{file}" in FILES):
            found.append((owner != config_name, not path.stem.startswith("toy"), path.stem, what))
    return {name: what for *_, name, what in sorted(found)}


def maker(path: Path) -> str | None:
    """Return the command line whose run would hold `path`, runs/RECIPE/..., by default; None if it is no recipe's."""
    for run in [path, *path.parents]:
        recipe = find("recipes") / f"{run.name}.yaml"
        if run.parent.name == "runs" and recipe.is_file():
            return f"starling {_head(recipe)[0]} +recipe={run.name}"
    return None


def _head(path: Path) -> tuple[str, str]:
    """Return the command that a recipe is for, and its first sentence: `# ppo: The toy, with ...` on several lines."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:])
    head = RECIPE_HEAD.fullmatch(f"# {' '.join(lines)}")
    assert head, f"{path} does not begin with `# command: what it is`"
    return head[1], re.split(r"(?<=[.?!])\s|: ", head[2])[0].rstrip(".")


def store_recipes(arguments: list[str]) -> None:
    """Make `recipes/NAME.yaml` known to Hydra as `+recipe=NAME`, and `${assets:NAME}` as a value.

    Hydra copies all that it knows again and again, so recipes that the arguments cannot mean are known by name only.
    """
    OmegaConf.register_new_resolver("assets", lambda name: str(assets.directory(name)), replace=True)
    names = sorted(path.stem for path in find("recipes").glob("*.yaml"))
    asked = _recipes_asked_for(arguments, names)
    for name in names:
        node = _recipe(name) if name in asked else OmegaConf.create()
        ConfigStore.instance().store(group="recipe", name=name, node=node, package="_global_")


def _recipes_asked_for(arguments: list[str], names: list[str]) -> set[str]:
    """Return the recipes whose content the arguments may ask for, with those that they build on."""
    values = [value for key, _, value in (one.partition("=") for one in arguments) if "recipe" in key]
    if any(map(BRINGS_FILES.match, arguments)) or not all(re.fullmatch(r"[\w\s,\[\]]*", value) for value in values):
        return set(names)  # also for globs, interpolations and what else may stand for a name
    asked: set[str] = set()
    more = {word for value in values for word in re.findall(r"\w+", value)}
    while found := more & set(names) - asked:
        asked |= found
        more = {base for name in found for base in _recipe(name).get("defaults", ())}
    return asked


@functools.cache
def _recipe(name: str) -> DictConfig:
    recipe = OmegaConf.load(find("recipes") / f"{name}.yaml")
    assert isinstance(recipe, DictConfig), name
    return recipe
