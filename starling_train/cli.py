"""From a command line to a typed configuration: the only file that knows Hydra.

Hydra composes `conf/`, recipes and overrides; the result becomes dataclasses here, at the door, and is checked
before anything heavy is imported. A user's mistake ends in one line on stderr and exit code 2.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from starling_train import assets
from starling_train.config import Config, UserError


def command(check: Callable[[Any], None], schema: type = Config, config_name: str = "config") -> Callable:
    """Make a function of a checked configuration a command: `main()` reads sys.argv and returns when it is done.

    check: cross-field checks, raises UserError. schema: the dataclass that the composed configuration must fit.
    config_name: the file of `conf/` that the command starts from.
    """

    def decorate(body: Callable[[Any], None]) -> Callable[[], None]:
        def main() -> None:
            debug = any(argument in ("debug=true", "debug=True") for argument in sys.argv[1:])
            try:
                for composed in _compose(config_name):
                    config = typed(composed, schema)
                    check(config)
                    body(config)
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if debug:
                    raise
                print(f"error: {_one_line(error)}", file=sys.stderr)
                sys.exit(2)

        return main

    return decorate


def _compose(config_name: str) -> list[DictConfig]:
    """What the command line asks for: one configuration; none after --help and --cfg; several with --multirun."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let its errors through to us instead of printing and exiting
    store_recipes()
    composed: list[DictConfig] = []
    hydra.main(version_base="1.3", config_path=str(find("conf")), config_name=config_name)(composed.append)()
    return composed


def store_recipes() -> None:
    """Make `recipes/NAME.yaml` known to Hydra as `+recipe=NAME`, and `${assets:NAME}` as a value."""
    for recipe in sorted(find("recipes").glob("*.yaml")):
        node = OmegaConf.load(recipe)
        ConfigStore.instance().store(group="recipe", name=recipe.stem, node=node, package="_global_")
    OmegaConf.register_new_resolver("assets", lambda name: str(assets.directory(name)), replace=True)


def find(folder: str) -> Path:
    """`conf` or `recipes`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside, beside = package / folder, package.parent / folder
    return inside if inside.is_dir() else beside


def typed(composed: DictConfig, schema: type = Config) -> Any:
    """The composed configuration as dataclasses; raises OmegaConf's errors for an unknown key or a wrong type."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))


def to_yaml(config: Any) -> str:
    """A typed configuration as YAML text."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        text = f"{error.full_key}: {error.msg or text}"
    text = re.sub(r"\s*\n\s*(full_key|reference_type|object_type|object):.*", "", text)
    text = re.sub(r"To append to your config use \S+", "see --cfg job for the keys that exist", text)
    return re.sub(r"\s*\n\s*", " ", text.strip())
