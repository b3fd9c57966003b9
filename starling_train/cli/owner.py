"""Which command the recipes of a command line are for."""

import io
import re
from contextlib import redirect_stderr

from hydra.errors import HydraException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from starling_train.cli.compose import configuration
from starling_train.config.conf_files import FILES
from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.laser import LaserConfig
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig

IS_RECIPE = re.compile(r"\+*recipe(/[\w/]+)?(@_global_)?=")
FOLDER_FLAGS = ("-cd", "--config-dir")


def command_of_recipe(arguments: list[str]) -> str | None:
    """Return the file of `conf/` of the training command that the recipes of a command line are for.

    Of the first one of ppo, dpo, rm and laser that takes them; None without a recipe, and where none does.
    """
    recipes = [argument for argument in arguments if IS_RECIPE.match(argument)]
    for number, argument in enumerate(arguments):
        if argument.startswith((*FOLDER_FLAGS, "hydra.searchpath=")):
            recipes += arguments[number : number + (2 if argument in FOLDER_FLAGS else 1)]
    if not any(map(IS_RECIPE.match, recipes)):
        return None
    for name, schema in (("config", PpoConfig), ("dpo", DpoConfig), ("rm", RmConfig), ("laser", LaserConfig)):
        try:
            with redirect_stderr(io.StringIO()):
                configuration(recipes, schema, name)
            return name
        except (UserError, HydraException, OmegaConfBaseException, SystemExit):
            continue
    return None


def wrong_recipe(arguments: list[str], config_name: str, error: Exception) -> UserError | None:
    """Return what is wrong where a key is unknown because the recipe is another command's; None for other errors."""
    unknown = isinstance(error, ConfigKeyError) or "Could not override" in str(error)
    owner = command_of_recipe(arguments) if unknown else None
    known = {name: FILES[name] for name in (owner, config_name) if name}
    if owner is None or owner == config_name or issubclass(known[config_name], known[owner]):
        return None
    recipes = " ".join(argument for argument in arguments if IS_RECIPE.match(argument))
    command = {"config": "ppo"}.get(owner, owner)
    return UserError(f"recipe: {recipes} is for another command; use python -m starling_train.{command} {recipes}")
