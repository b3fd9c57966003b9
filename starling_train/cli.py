"""From a command line to a typed configuration: the only file that knows Hydra.

Hydra composes `conf/`, recipes and overrides; the result becomes dataclasses here, at the door, and is checked
before anything heavy is imported. A user's mistake ends in one line on stderr and exit code 2.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

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
                print(f"error: {_one_line(error, schema)}", file=sys.stderr)
                sys.exit(2)

        return main

    return decorate


def _compose(config_name: str) -> list[DictConfig]:
    """What the command line asks for: one configuration; none after --help and --cfg; several with --multirun."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let its errors through to us instead of printing and exiting
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too: no bars in log files
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


def _one_line(error: Exception, schema: type) -> str:
    """The error as one line: key, what is wrong, what to do. Hydra's and OmegaConf's own texts run over several."""
    text = str(error)
    if found := re.search(r"Could not override '(?P<key>[\w.]+)'", text):
        return f"{found['key']}: no such key; {_keys_beside(found['key'], schema)}"
    if found := re.search(r"Could not find '([\w/]+)/([^']+)'\s+Available options in '[^']+':([^:]*)\n", text):
        group, name, listed = found.groups()
        options = ", ".join(listed.split())
        return f"{group}: there is no '{name}'; use one of: {options}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        what = str(error.msg or text).strip().splitlines()[0]
        if isinstance(error, ConfigKeyError):
            return f"{error.full_key}: no such key; {_keys_beside(error.full_key, schema)}"
        return f"{error.full_key}: {what}; see --cfg job for the kinds of values"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read ({text.splitlines()[0]}); write section.key=value, and quote odd values"
        )
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _keys_beside(key: str, schema: type) -> str:
    """The keys that the section of a mistyped key has."""
    if key == "recipe":
        return "write +recipe=NAME, with a plus"
    for section in key.split("."):
        types = {field.name: field.type for field in fields(schema)}
        if get_origin(types.get(section)) is dict:
            return f"add to {section} with a plus: +{key}=..."
        if not is_dataclass(types.get(section)):
            break
        schema = types[section]
    names = ", ".join(field.name for field in fields(schema))
    return f"use one of: {names}"
