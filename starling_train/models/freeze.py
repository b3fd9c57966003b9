"""Freezes a model but for a selection, and says what trains. Nothing trains that was not named."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from starling_train.config import UserError
from starling_train.models.module_types import classify, layer_of
from starling_train.models.selection import EVERYTHING
from starling_train.models.snr_scan import Record


@dataclass(frozen=True)
class Row:
    """Of one module type: tensors and parameters that train, and how many there are."""

    type: str
    trained: int
    of: int
    parameters_trained: int
    parameters_of: int


@dataclass(frozen=True)
class FreezeTable:
    """What trains after `apply`: a row per module type and the names of the trainable parameters in model order.

    `lowest_layer` is the lowest decoder layer with a trainable tensor: 0 where embeddings train, the number of
    layers where only the final norm or the head does.
    """

    rows: tuple[Row, ...]
    names: tuple[str, ...]
    lowest_layer: int

    @property
    def parameters_trained(self) -> int:
        """Parameters that train."""
        return sum(row.parameters_trained for row in self.rows)

    @property
    def parameters_of(self) -> int:
        """Parameters of the model, tied ones counted once."""
        return sum(row.parameters_of for row in self.rows)

    def render(self) -> str:
        """A plain text table, one line per module type and one for the total."""
        total = Row(
            "total",
            sum(row.trained for row in self.rows),
            sum(row.of for row in self.rows),
            self.parameters_trained,
            self.parameters_of,
        )
        width = max(len(row.type) for row in (*self.rows, total))
        lines = [
            f"{'module type':<{width}}  {'tensors':>11}  {'parameters trained':>18}  {'of':>15}  {'share':>6}"
        ]
        for row in (*self.rows, total):
            share = row.parameters_trained / max(row.parameters_of, 1)
            lines.append(
                f"{row.type:<{width}}  {row.trained:>4} of {row.of:>3}  {row.parameters_trained:>18,}"
                f"  {row.parameters_of:>15,}  {share:>6.1%}"
            )
        return "\n".join(lines)


def apply(
    model: nn.Module,
    selected: Iterable[str],
    *,
    embeddings: bool = False,
    head: bool = False,
    norms: bool = False,
) -> FreezeTable:
    """Sets requires_grad on a causal LM: the weights of the `selected` modules and the asked-for groups, no others.

    `selected` holds exact module names (`model.layers.3.mlp.down_proj`; its bias stays frozen), or `["*"]` for every
    parameter. Raises UserError for a name that matches nothing, when nothing would train, and when embeddings and
    head are one tensor but only one of the two was asked for.
    """
    selected = list(selected)
    groups = _groups(model)
    wanted = {"embeddings": embeddings, "head": head, "norms": norms}
    _check_tied(model, embeddings, head, selected)
    names = _match(selected, groups) | {name for name, group in groups.items() if wanted.get(group, False)}
    if not names:
        raise UserError(
            "freeze.method: nothing would train; select matrices or set freeze.embeddings, head or norms"
        )
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        row = rows.setdefault(groups[name], [0, 0, 0, 0])
        counts = (name in names, 1, (name in names) * parameter.numel(), parameter.numel())
        rows[groups[name]] = [total + count for total, count in zip(row, counts, strict=True)]
    trained = tuple(name for name, _ in model.named_parameters() if name in names)
    return FreezeTable(
        tuple(Row(group, *counts) for group, counts in rows.items()),
        trained,
        _lowest_layer(model, groups, names),
    )


def _groups(model: nn.Module) -> dict[str, str]:
    """Parameter name -> module type, or embeddings, head, norms, other."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = {id(embeddings.weight): "embeddings"}
    if head is not None:
        parts.setdefault(id(head.weight), "head")
    groups = {}
    for name, parameter in model.named_parameters():
        kind = classify(name.removesuffix(".weight"), tuple(parameter.shape), model.config.model_type)
        # Every 1-D weight of a decoder scales or shifts a norm; biases of linear layers end in `.bias`.
        is_norm = kind.kind == "vector" and "norm" in name.split(".")[-2]
        groups[name] = parts.get(id(parameter)) or kind.type or ("norms" if is_norm else "other")
    return groups


def _check_tied(model: nn.Module, embeddings: bool, head: bool, selected: list[str]) -> None:
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    if tied and embeddings != head and selected != [EVERYTHING]:
        raise UserError(
            "freeze.head: this model's head and embeddings are one tensor; "
            "set freeze.embeddings and freeze.head both or neither"
        )


def _match(selected: list[str], groups: dict[str, str]) -> set[str]:
    if selected == [EVERYTHING]:
        return set(groups)
    names = set()
    for module in selected:
        name = module if module in groups else f"{module}.weight"
        if name not in groups:
            raise UserError(
                f"freeze.scan: {module} is selected but the model has no such parameter; scan this model"
            )
        names.add(name)
    return names


def _lowest_layer(model: nn.Module, groups: dict[str, str], names: set[str]) -> int:
    if any(groups[name] == "embeddings" for name in names):
        return 0
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    return min(layers, default=model.config.num_hidden_layers)


def write_unfrozen_yaml(selected: Iterable[str], records: dict[str, Record], path: Path) -> None:
    """Writes axolotl's `unfrozen_parameters`: an anchored, escaped pattern per weight, a comment line per type."""
    selected = set(selected)
    lines = ["unfrozen_parameters:"]
    if selected == {EVERYTHING}:
        lines += ["# every parameter", "- '^.*$'"]
    for kind in dict.fromkeys(record.type for record in records.values()):
        patterns = [pattern_of(m) for m, r in records.items() if r.type == kind and m in selected]
        lines += [f"# {kind} layers", *(f"- '{pattern}'" for pattern in patterns)] if patterns else []
    partial = Path(path).with_suffix(".tmp")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)


def pattern_of(module: str) -> str:
    """The regular expression that matches the weight of `module` and nothing else."""
    return f"^{re.escape(module)}\\.weight$"


def read_unfrozen_yaml(path: Path, names: Iterable[str]) -> list[str]:
    """Names of modules whose weights an `unfrozen_parameters` file selects among the parameter `names`.

    Patterns match at the start of a name, as axolotl matches them. Raises UserError for a pattern that matches nothing.
    """
    content = yaml.safe_load(Path(path).read_text())
    patterns = content.get("unfrozen_parameters") if isinstance(content, dict) else None
    if not isinstance(patterns, list):
        raise UserError(f"{path}: no list `unfrozen_parameters`; write the file again")
    names, matched = list(names), set()
    for pattern in patterns:
        hits = {name for name in names if re.match(pattern, name)}
        if not hits:
            raise UserError(
                f"{path}: pattern {pattern} matches no parameter of the model; check it against the model"
            )
        matched |= hits
    return [name.removesuffix(".weight") for name in names if name in matched]
