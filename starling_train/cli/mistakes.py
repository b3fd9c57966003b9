"""A wrong command line or recipe as one line: the key, what is wrong with it, what to do, and what may be meant."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin

from hydra.errors import OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from starling_train.cli.packaged import find, recipes_of
from starling_train.config.conf_files import FILES
from starling_train.config.fields import UserError, did_you_mean, nearest, walk, without_secrets

OWN_FLAGS = ("--help", "--help-all", "--version", "--cfg", "--multirun", "--config-dir", "--config-name")


def one_line(error: Exception, schema: type) -> str:
    """Return the error as one line without secrets; Hydra's and OmegaConf's own texts run over several."""
    return without_secrets(re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]\s*", " ", explain(error, schema).strip()))


def explain(error: Exception, schema: type) -> str:
    """Return the key, what is wrong with it, and what to do."""
    text = str(error)
    if told := _of_groups(text, schema):
        return told
    if match := re.search(r"(Could not override|Could not delete from config\.) '(?P<key>[\w.]+)'", text):
        return f"{match['key']}: no such key; {_keys_beside(match['key'], schema)}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        what = str(error.msg or text).strip().splitlines()[0]
        if isinstance(error, ConfigKeyError):
            return f"{error.full_key}: no such key; {_keys_beside(error.full_key, schema)}"
        return f"{error.full_key}: {what}; see --help-all for the kinds of values"
    if match := re.match(r"Error merging override \+*(?P<key>[\w.]+)=(?P<value>.*)", text):
        return f"{match['key']}: {match['value']} is of another kind; see --help-all for the kinds of values"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read ({text.splitlines()[0]}); write section.key=value, and quote odd values"
        )
    return text if isinstance(error, UserError) else f"{text}; see --help for how keys are set"


def section_as_value(argument: str, schema: type) -> str | None:
    """Return what is wrong with a plain value for a section, such as `algorithm.kl=0.1`; None: nothing is.

    A section that has options, such as `freeze=snr`, is left to Hydra.
    """
    key, _, value = argument.lstrip("+").partition("=")
    beside, names = schema, key.split(".")
    while names:
        inner = _section_in(beside, names)
        if inner is None:
            return None
        beside = inner
    if not value or value[0] in "{$\"'" or find("conf").joinpath(*key.split(".")).is_dir():
        return None
    keys = ", ".join(f"{key}.{field.name}" for field in fields(beside))
    return f"{key}: is a section and takes no value; set one of its keys: {keys}"


def _path_instead(whole: str, schema: type) -> str | None:
    """Return advice where a section got a file or directory in place of an option, such as `model=DIR`.

    whole: section and value, `model/DIR`.
    """
    section, _, value = whole.partition("/")
    is_path = "/" in value or "." in value or Path(value).exists()
    if not is_path or f"{section}.path" not in _keys(schema):
        return None
    return f"{section}: there is no option '{value}'; write {section}.path={value}"


def _of_groups(text: str, schema: type) -> str | None:
    """Return what is wrong where Hydra does not find a file: of a recipe, of a section's options, or a folder of them.

    text: of Hydra's error.
    schema: the command's dataclass.
    """
    if match := re.search(r"Could not find '([\w/]+)/([^']+)'\s+Available options in '[^']+':([^:]*)\n", text):
        group, name, listed = match.groups()
        if told := _path_instead(f"{group}/{name}", schema):
            return told
        return f"{group}: there is no '{name}'; {_options(group, name, listed.split(), schema, text)}"
    if match := re.search(r"Could not load '([\w/]+)/([^'/]+)'", text):
        group, name = match.groups()
        folders = [Path(one) / group for one in re.findall(r"path=file://(\S+)", text)]
        folders += [find("recipes")] if group == "recipe" else []
        listed = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        return f"{group}: there is no '{name}'; {_options(group, name, listed, schema, text)}"
    if match := re.search(r"config group '([\w/]+)' does not exist", text):
        return f"{match[1]}: there is no such folder; give -cd DIR, where DIR/{match[1]}/NAME.yaml is"
    if match := re.search(r"Additional config directory '(.*)' not found", text):
        return f"-cd: there is no directory {match[1]}; give the one that holds recipe/NAME.yaml"
    return None


def yaml_position(error: YAMLError) -> str:
    """Return file, line and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not YAML"
    return f"{mark.name}:{mark.line + 1}: {problem}" if mark else str(error)


def wrong_flag(usage: str, schema: type) -> str:
    """Return what is wrong with a flag, from the lines that argparse prints; keys are often taken for flags.

    usage: argparse's text; its last line is `program: error: unrecognized arguments: --flag`.
    schema: the command's dataclass.
    """
    told = usage.strip().rpartition("\n")[2].rpartition("error: ")[2] or "the command line is wrong"
    meant = ""
    if match := re.search(r"unrecognized arguments: --?([\w.-]+)(=\S*)?", told):
        name = match[1].replace("-", "_")
        key = _nearest_key(name, schema) if name not in _keys(schema) else name
        flag, value = nearest(f"--{match[1]}", OWN_FLAGS), match[2] or ("=true" if _is_switch(key, schema) else "=...")
        if flag or key:
            meant = f"did you mean {flag or f'{key}{value}'}? "
    return f"{told}; {meant}write section.key=value, and see --help"


def _options(group: str, name: str, listed: list[str], schema: type, text: str) -> str:
    """Return advice for an option that a group does not have; of the recipes, those of other commands are left out.

    group: recipe, or a section that has options.
    name: the option.
    listed: the group's options.
    schema: the command's dataclass.
    text: of Hydra's error, which has the folders where it looked.
    """
    if group.partition("/")[0] == "recipe":
        command = next(file for file, one in FILES.items() if one is schema)
        others = {path.stem for path in find("recipes").glob("*.yaml")} - recipes_of(command).keys()
        listed = [option for option in listed if option not in others]
        if group != "recipe" and name in recipes_of(command):
            return f"write /recipe@_here_: {name} for one of ours"
        for folder in map(Path, re.findall(r"path=file://(\S+)", text)):
            if folder != find("conf") and (folder / f"{name}.yaml").is_file():
                return f"put {folder / name}.yaml into {folder / group}/"
    for key, field, _, _ in walk(schema()):  # freeze=lora: a word of another key of the section
        if key.startswith(f"{group}.") and name in field.metadata.get("choices", ()):
            return f"write {key}={name}; or use one of: {', '.join(listed)}"
    return f"{did_you_mean(name, listed)}use one of: {', '.join(listed)}"


def _keys_beside(key: str, schema: type) -> str:
    """Return advice for a mistyped key: the nearest one, and the keys that its section has."""
    if nearest(key, ["recipe"], 0.8) or key.startswith("recipe/"):
        return "write +recipe=NAME, with a plus"
    near, beside, names = _nearest_key(key, schema), schema, key.split(".")
    while names:
        types: dict[str, Any] = {field.name: field.type for field in fields(beside)}
        section, each = names[0], _each(beside, names[0])
        if get_origin(types.get(section)) is dict and (each is None or len(names) == 1):
            return f"add to {section} with a plus: +{key}=..."
        inner = _section_in(beside, names)
        if inner is None:
            break
        beside = inner
        if each and len(names) == 1:  # within it, whose name is the user's, `_nearest_key` does not look
            meant = nearest(names[0], [field.name for field in fields(beside)], 0.6)
            near = f"{key.removesuffix(names[0])}{meant}" if meant else near
    known = ", ".join(field.name for field in fields(beside))
    return f"{f'did you mean {near}? ' if near else ''}use one of: {known}"


def _each(section: type, name: str) -> type | None:
    """Return the dataclass of the sections that a key of a section holds; None where it holds none."""
    return next((field.metadata.get("each") for field in fields(section) if field.name == name), None)


def _section_in(section: type, names: list[str]) -> type | None:
    """Take the first name away, of `sections` also the second, and return the section there; None: there is none."""
    name = names.pop(0)
    if each := _each(section, name):
        return each if names and names.pop(0) else None
    types: dict[str, Any] = {field.name: field.type for field in fields(section)}
    return types[name] if is_dataclass(types.get(name)) else None


def _keys(schema: type) -> list[str]:
    """Return every key of a command, and its sections."""
    names = [name for name, _, _, _ in walk(schema())]
    sections = {name.rpartition(".")[0] for name in names} - {""}
    return [*names, *sorted(sections)]


def _is_switch(key: str | None, schema: type) -> bool:
    return any(name == key and isinstance(value, bool) for name, _, value, _ in walk(schema()))


def _nearest_key(key: str, schema: type) -> str | None:
    """Return the key that is meant: of that name in another section, or written much like it."""
    keys, (section, _, name) = _keys(schema), key.rpartition(".")
    namesakes = [one for one in keys if one.rpartition(".")[2] == name]
    if namesakes:
        return nearest(key, namesakes, 0.0)
    if section in keys:
        beside = [one for one in keys if one.rpartition(".")[0] == section]
        near = nearest(name, [one.rpartition(".")[2] for one in beside], 0.6)
        return f"{section}.{near}" if near else None
    return nearest(key, keys, 0.75)
