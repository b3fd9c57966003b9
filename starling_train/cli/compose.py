"""From a command line to a typed configuration, by Hydra: it composes `conf/`, recipes and overrides.

Here the result becomes dataclasses, before anything heavy is imported.
"""

import functools
import io
import os
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException
from yaml import YAMLError

from starling_train.cli.mistakes import explain, section_as_value, wrong_flag, yaml_position
from starling_train.cli.packaged import find, store_recipes
from starling_train.config.fields import UserError, former_names, walk
from starling_train.config.ppo import PpoConfig

# Hydra's own: its flags, and its settings, which it reads before it composes
IS_FLAG = re.compile(r"-|[+~]*hydra[./]")
# Hydra's flags that are followed by a value
WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
}  # fmt: skip
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}  # what may follow --info, or not


def compose(arguments: list[str], config_name: str, schema: type) -> list[DictConfig]:
    """Return the configurations of a command line: one; none after --help and --cfg; several with --multirun."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let its errors through to us instead of printing and exiting
    store_recipes(arguments)
    arguments = _flags_last(arguments)
    arguments = [_with_new_name(argument, former_names(schema)) for argument in arguments]
    for argument in arguments:
        if told := section_as_value(argument, schema):
            raise UserError(told)
    arguments = [_as_global(_with_plus(argument, schema)) for argument in arguments]
    written = io.StringIO()
    try:
        with redirect_stderr(written):  # a wrong flag prints several lines of usage
            way = _compose_with_flags if any(map(IS_FLAG.match, arguments)) else _compose_once
            composed = way(arguments, config_name)
    except SystemExit as stopped:
        if stopped.code:
            raise UserError(wrong_flag(written.getvalue(), schema)) from None
        raise
    except YAMLError as error:
        raise UserError(f"{yaml_position(error)}; repair it, or leave it out") from error
    except (HydraException, OmegaConfBaseException):
        raise
    except (ValueError, TypeError) as error:  # Hydra's own, e.g. for model=null
        raise UserError(f"the command line cannot be read ({error}); see --help for how keys are set") from error
    sys.stderr.write(written.getvalue())
    return composed


def _compose_with_flags(arguments: list[str], config_name: str) -> list[DictConfig]:
    """Compose in Hydra's own way, with all of its flags; it composes twice, first to learn whether it is a multirun."""
    composed: list[DictConfig] = []
    own = sys.argv
    sys.argv = [own[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(find("conf")), config_name=config_name)(composed.append)()
    finally:
        sys.argv = own
    return composed


def _compose_once(arguments: list[str], config_name: str) -> list[DictConfig]:
    with hydra.initialize_config_dir(str(find("conf")), version_base="1.3"):
        composer = GlobalHydra.instance().hydra
        assert composer is not None, "just initialised"
        composed = composer.compose_config(config_name, arguments, run_mode=RunMode.RUN, with_log_configuration=False)
    with open_dict(composed):
        del composed["hydra"]
    return [composed]


def _flags_last(arguments: list[str]) -> list[str]:
    """Return the arguments with the flags, and the values that follow them, behind all others.

    Hydra's parser takes settings in one place only, before the flags or behind them.
    """
    settings, flags, rest = [], [], iter(arguments)
    following: str | None = next(rest, None)
    while (argument := following) is not None:
        following = next(rest, None)
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        flags.append(argument)
        has_value = argument in WITH_VALUE or (argument in ("--info", "-i") and following in INFO)
        if has_value and following is not None:
            flags.append(following)
            following = next(rest, None)
    return settings + flags


def _with_new_name(argument: str, former: dict[str, str]) -> str:
    """Return the argument with its key's present name; a former name is reported in one line."""
    key, _, value = argument.lstrip("+").partition("=")
    return f"{_report_former(key, former[key])}={value}" if key in former else argument


def _with_plus(argument: str, schema: type) -> str:
    """Return the argument as Hydra wants it for a mapping that holds nothing yet: its keys are new ones, `++`."""
    key = argument.partition("=")[0]
    mappings = [name for name, _, value, _ in walk(schema()) if value == {}]
    return f"++{argument}" if any(f"{key}.".startswith(f"{name}.") for name in mappings) else argument


def _as_global(argument: str) -> str:
    """Return a recipe's argument so that its keys stand at the top, without a `# @package _global_` in its file."""
    return re.sub(r"^(\++)(recipe(?:/[\w/]+)?)=", r"\1\2@_global_=", argument)


def _report_former(old: str, new: str) -> str:
    print(f"{old}: is called {new} now; please use that", file=sys.stderr)
    return new


def configuration(arguments: list[str], schema: type = PpoConfig, config_name: str = "config") -> Any:
    """Return the configuration of another command line, given without the command; raises the errors it would end in.

    arguments: the command line's arguments.
    schema: the command's dataclass.
    config_name: the file of `conf/` that the command starts from.
    """
    (composed,) = compose(arguments, config_name, schema)
    return typed(composed, schema)


def quoted(value: str) -> str:
    """Return a value quoted so that Hydra's command line reads it back, whatever characters it has."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def typed(composed: DictConfig, schema: type = PpoConfig) -> Any:
    """Return the composed configuration as dataclasses; raises OmegaConf's errors for an unknown key or a wrong type.

    A key's former name, in a recipe or in a file of an earlier version, counts unless the new name has a value.
    """
    for old, new in former_names(schema).items():
        section, name = OmegaConf.select(composed, old.rpartition(".")[0]), old.rpartition(".")[2]
        if section is not None and name in section:
            with open_dict(composed):
                value = section.pop(name)
                if OmegaConf.select(composed, _report_former(old, new)) is None:
                    OmegaConf.update(composed, new, value)
    _check_containers(composed, schema)
    return OmegaConf.to_object(OmegaConf.merge(_structure(schema), composed))


@functools.cache
def _structure(schema: type) -> DictConfig:
    return OmegaConf.structured(schema)  # of which a merge makes a copy


def _check_containers(composed: DictConfig, schema: type) -> None:
    """Raise OmegaConf's error, with the key that it leaves out, for a list in place of a mapping, or the reverse."""
    for key, item, _, _ in walk(schema()):
        value = OmegaConf.select(composed, key)
        kind: Any = item.type
        # list[str] | None, or list[str]
        kinds: list[Any] = [get_origin(one) for one in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
        for wrong, right, what in ((DictConfig, list, "a list"), (ListConfig, dict, "a mapping")):
            if isinstance(value, wrong) and right in kinds:
                error = ConfigTypeError(f"{OmegaConf.to_container(value)} is not {what}")
                error.full_key, error.msg = key, str(error)
                raise error


def read_settings(values: Any, schema: type, source: Path) -> Any:
    """Return the configuration that a run has written, as dataclasses. Raises UserError.

    values: the content of the file.
    schema: the dataclass.
    source: the file, for messages.
    """
    if not isinstance(values, dict):
        raise UserError(f"run_dir: {source} is not the configuration of a run; give the directory of a run")
    try:
        return typed(OmegaConf.create(values), schema)
    except OmegaConfBaseException as error:
        raise UserError(f"run_dir: {source} cannot be used ({explain(error, schema)}); put the file back") from error
