"""From a command line to a typed configuration: the only file that knows Hydra.

Hydra composes `conf/`, recipes and overrides; here the result becomes dataclasses and is checked, before anything heavy
is imported. A user's mistake ends in one line on stderr and exit code 2, Ctrl-C in one line and exit code 130.
"""

import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException
from yaml import YAMLError

from starling_train import assets
from starling_train.config.conf_files import FILES
from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError, former_names, walk
from starling_train.config.laser import LaserConfig
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig
from starling_train.run.interruption import stopped_in_one_line
from starling_train.run.out_of_memory import is_out_of_memory, without_memory

# Hydra's own: its flags, and its settings, which it reads before it composes
IS_FLAG = re.compile(r"-|[+~]*hydra[./]")
# -cd, -cp, -cn in all their spellings, and Hydra's search path: files of the user's, which may build on any recipe
BRINGS_FILES = re.compile(r"--?c(?!fg)|[+~]*hydra[./]")
IS_RECIPE = re.compile(r"\+*recipe(/[\w/]+)?(@_global_)?=")
FOLDER_FLAGS = ("-cd", "--config-dir")


def command(check: Callable[[Any], None], schema: type = PpoConfig, config_name: str = "config") -> Callable:
    """Make a function of a checked configuration a command: `main()` reads sys.argv and returns when it is done.

    check: cross-field checks, raises UserError.
    schema: the dataclass that the composed configuration must fit.
    config_name: the file of `conf/` that the command starts from.
    """

    def decorate(body: Callable[[Any], None]) -> Callable[[], None]:
        def main() -> None:
            debug = any(argument in ("debug=true", "debug=True") for argument in sys.argv[1:])
            try:
                with stopped_in_one_line():
                    for composed in _compose(sys.argv[1:], config_name, schema):
                        config = typed(composed, schema)
                        check(config)
                        if getattr(config, "prepare", None):
                            assets.ensure(config.prepare)
                        body(config)
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if debug:
                    raise
                wrong = _wrong_recipe(sys.argv[1:], config_name, error)
                print(f"error: {_one_line(wrong or error, schema)}", file=sys.stderr)
                sys.exit(2)
            except OSError as error:
                fault = disk_fault(error)
                if debug or fault is None:
                    raise
                print(f"error: {fault}", file=sys.stderr)
                sys.exit(2)
            except (MemoryError, RuntimeError) as error:
                if debug or not is_out_of_memory(error):
                    raise
                print(f"error: {without_memory(error)}", file=sys.stderr)
                sys.exit(2)

        return main

    return decorate


# a disk that fails during a run: full, over quota, unmounted, read-only, broken
DISK_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EIO,
    errno.ESTALE,
)  # fmt: skip


def disk_fault(error: OSError) -> str | None:
    """Return one line if the disk failed, None for any other error. Everything saved before is intact."""
    if error.errno not in DISK_FAULTS:
        return None
    return (
        f"{error.filename or 'the disk'}: {os.strerror(error.errno)}; everything saved so far is intact; fix the disk, "
        "then run the same command again"
    )


def _compose(arguments: list[str], config_name: str, schema: type) -> list[DictConfig]:
    """Return the configurations of a command line: one; none after --help and --cfg; several with --multirun."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let its errors through to us instead of printing and exiting
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too: no bars in log files
    store_recipes(arguments)
    arguments = [_with_new_name(argument, former_names(schema)) for argument in arguments]
    arguments = [_as_global(_with_plus(argument, schema)) for argument in arguments]
    written = io.StringIO()
    try:
        with redirect_stderr(written):  # a wrong flag prints several lines of usage
            compose = _compose_with_flags if any(map(IS_FLAG.match, arguments)) else _compose_once
            composed = compose(arguments, config_name)
    except SystemExit as stopped:
        if stopped.code:
            raise UserError(f"{_last_line(written)}; write section.key=value, and see --help") from None
        raise
    except YAMLError as error:
        raise UserError(f"{_yaml_position(error)}; repair it, or leave it out") from error
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


def _wrong_recipe(arguments: list[str], config_name: str, error: Exception) -> UserError | None:
    """Return what is wrong where a key is unknown because the recipe is another command's; None for other errors."""
    unknown = isinstance(error, ConfigKeyError) or "Could not override" in str(error)
    owner = command_of_recipe(arguments) if unknown else None
    known = {name: FILES[name] for name in (owner, config_name) if name}
    if owner is None or owner == config_name or issubclass(known[config_name], known[owner]):
        return None
    recipes = " ".join(argument for argument in arguments if IS_RECIPE.match(argument))
    command = {"config": "ppo"}.get(owner, owner)
    return UserError(f"recipe: {recipes} is for another command; use python -m starling_train.{command} {recipes}")


def _report_former(old: str, new: str) -> str:
    print(f"{old}: is called {new} now; please use that", file=sys.stderr)
    return new


def configuration(arguments: list[str], schema: type = PpoConfig, config_name: str = "config") -> Any:
    """Return the configuration of another command line, given without the command; raises the errors it would end in.

    arguments: the command line's arguments.
    schema: the command's dataclass.
    config_name: the file of `conf/` that the command starts from.
    """
    (composed,) = _compose(arguments, config_name, schema)
    return typed(composed, schema)


def quoted(value: str) -> str:
    """Return a value quoted so that Hydra's command line reads it back, whatever characters it has."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def _last_line(written: io.StringIO) -> str:
    """Return the message of argparse's last line, `program: error: unrecognized arguments: --flag`."""
    return written.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2] or "the command line is wrong"


def _yaml_position(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not YAML"
    return f"{mark.name}:{mark.line + 1}: {problem}" if mark else str(error)


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


def find(folder: str) -> Path:
    """Return the directory `conf` or `recipes`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside, beside = package / folder, package.parent / folder
    return inside if inside.is_dir() else beside


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
        raise UserError(f"run_dir: {source} cannot be used ({_explain(error, schema)}); put the file back") from error


def _one_line(error: Exception, schema: type) -> str:
    """Return the error as one line without secrets; Hydra's and OmegaConf's own texts run over several."""
    line = re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]\s*", " ", _explain(error, schema).strip())
    line = re.sub(r"(://)[^/\s'\"]*@", r"\1***@", line)  # user:password in an address
    return re.sub(r"\bhf_\w{8,}", "hf_***", line)  # a token of the hub where a name belongs


def _explain(error: Exception, schema: type) -> str:
    """Return the key, what is wrong with it, and what to do."""
    text = str(error)
    if match := re.search(r"Could not override '(?P<key>[\w.]+)'", text):
        return f"{match['key']}: no such key; {_keys_beside(match['key'], schema)}"
    if match := re.search(r"Could not find '([\w/]+)/([^']+)'\s+Available options in '[^']+':([^:]*)\n", text):
        group, name, listed = match.groups()
        options = ", ".join(listed.split())
        return f"{group}: there is no '{name}'; use one of: {options}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        what = str(error.msg or text).strip().splitlines()[0]
        if isinstance(error, ConfigKeyError):
            return f"{error.full_key}: no such key; {_keys_beside(error.full_key, schema)}"
        return f"{error.full_key}: {what}; see --cfg job for the kinds of values"
    if match := re.match(r"Error merging override \+*(?P<key>[\w.]+)=(?P<value>.*)", text):
        return f"{match['key']}: {match['value']} is of another kind; see --cfg job for the kinds of values"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read ({text.splitlines()[0]}); write section.key=value, and quote odd values"
        )
    return text if isinstance(error, UserError) else f"{text}; see --help for how keys are set"


def _keys_beside(key: str, schema: type) -> str:
    """Return advice for a mistyped key: the keys that its section has."""
    if key == "recipe":
        return "write +recipe=NAME, with a plus"
    for section in key.split("."):
        types: dict[str, Any] = {field.name: field.type for field in fields(schema)}
        if get_origin(types.get(section)) is dict:
            return f"add to {section} with a plus: +{key}=..."
        if not is_dataclass(types.get(section)):
            break
        schema = types[section]
    names = ", ".join(field.name for field in fields(schema))
    return f"use one of: {names}"
