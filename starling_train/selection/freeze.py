"""Freezes a model except for a selection, and reports what trains. Nothing trains that was not named."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from starling_train.config.fields import UserError
from starling_train.config.sections import FreezeConfig
from starling_train.models.reward.net import Network
from starling_train.selection.module_types import Matrix, classify, layer_of
from starling_train.selection.records import not_whole
from starling_train.selection.select import EVERYTHING

GROUPS = ("embeddings", "head", "norms")  # what can train besides matrices, each a key of `freeze`


@dataclass(frozen=True)
class TableRow:
    """One module type: how many of its tensors and parameters train, and of how many."""

    type: str
    trained: int = 0
    of: int = 0
    parameters_trained: int = 0
    parameters_of: int = 0

    def plus(self, other: "TableRow") -> "TableRow":
        return replace(
            self,
            trained=self.trained + other.trained,
            of=self.of + other.of,
            parameters_trained=self.parameters_trained + other.parameters_trained,
            parameters_of=self.parameters_of + other.parameters_of,
        )


@dataclass(frozen=True)
class FreezeTable:
    """What trains after `apply`: a row per module type, and the names of the trainable parameters in model order.

    `lowest_layer` is the lowest decoder layer with a trainable tensor: 0 where embeddings train, the number of layers
    where only the final norm or the head does.
    """

    rows: tuple[TableRow, ...]
    names: tuple[str, ...]
    lowest_layer: int

    @property
    def total(self) -> TableRow:
        """All rows together."""
        total = TableRow("total")
        for row in self.rows:
            total = total.plus(row)
        return total

    @property
    def parameters_trained(self) -> int:
        """Parameters that train."""
        return self.total.parameters_trained

    @property
    def parameters_of(self) -> int:
        """Parameters of the model, tied ones counted once."""
        return self.total.parameters_of

    def counts(self) -> dict[str, Any]:
        """Return the numbers as summary.json has them."""
        return {
            "parameters": self.parameters_trained,
            "of": self.parameters_of,
            "matrices": sum(row.trained for row in self.rows),
            "by_type": [
                {"type": row.type, "matrices": row.trained, "of": row.of, "parameters": row.parameters_trained}
                for row in self.rows
            ],
        }

    def render(self) -> str:
        """Render a plain text table, one line per module type and one for the total."""
        rows = (*self.rows, self.total)
        width = max(len(row.type) for row in rows)
        lines = [f"{'module type':<{width}}   {'tensors':>11} {'parameters trained':>20} {'of':>15}  {'share':>6}"]
        for row in rows:
            share = row.parameters_trained / max(row.parameters_of, 1)
            lines.append(
                f"{row.type:<{width}}  {row.trained:>4} of {row.of:>4} {row.parameters_trained:>20,}"
                f" {row.parameters_of:>15,}  {share:>6.1%}"
            )
        return "\n".join(lines)


def besides(config: FreezeConfig, groups: dict[str, str], names: Iterable[str]) -> list[str]:
    """Name the parameters that train besides the matrices `names`: whole groups, but norms only where something trains.

    groups: parameter names -> embeddings, head, norms or anything else.
    """
    layers = {layer_of(name) for name in names} | {None}  # None: the final norm lies outside the layers
    chosen = [name for name, group in groups.items() if group in GROUPS and getattr(config, group)]
    return [name for name in chosen if groups[name] != "norms" or layer_of(name) in layers]


@dataclass(frozen=True)
class _Parameter:
    name: str
    group: str  # module type, or embeddings, head, norms, other
    shape: tuple[int, ...]
    matrices: tuple[Matrix, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def trained(self, rank: int | None) -> int:
        """Count the parameters that train: of the tensor, or of an adapter of that rank on it."""
        return self.size if rank is None else rank * sum(self.shape)


def apply(config: FreezeConfig, model: Network, selected: Iterable[str]) -> FreezeTable:
    """Set requires_grad on a causal LM: the weights of the `selected` modules and the requested groups, no others.

    `selected` holds exact module names (`model.layers.3.mlp.down_proj`; a bias stays frozen), or `["*"]` for every
    parameter. Norms: the final one and those of the layers in which something else trains. With adapters, these train
    on the tensors named: only matrices, and the head if it is requested. Raises UserError for a name that matches
    nothing, for a slice of a tensor that can only train as a whole, when nothing would train, and when embeddings and
    head are one tensor but only one of the two was requested.
    """
    selected, rank = list(selected), config.lora.rank if config.adapter else None
    parameters = _parameters(model)
    names = _match(selected, parameters)
    if selected != [EVERYTHING] or rank is not None:
        check_tied(config, is_tied(model))
        names |= set(besides(config, {p.name: p.group for p in parameters}, names))
    if rank is not None:
        names = {p.name for p in parameters if p.name in names and (p.matrices or (config.head and p.group == "head"))}
        if odd := next((p.name for p in parameters if p.name in names and len(p.shape) != 2), None):
            raise UserError(f"freeze.adapter: {odd} is not a single matrix, as adapters need; leave it out")
    if not names:
        raise UserError("freeze.method: nothing would train; select matrices, or set freeze.embeddings, head or norms")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    trained = tuple(p.name for p in parameters if p.name in names)
    return FreezeTable(_rows(parameters, names, rank), trained, _lowest_layer(model, parameters, names))


def modules_in(model: Network, names: Iterable[str]) -> list[str]:
    """Name what `apply` selects to train exactly these parameters: the matrices in them, or they themselves."""
    held = {parameter.name: parameter for parameter in _parameters(model)}
    modules = []
    for name in names:
        matrices = held[name].matrices if name in held else ()
        modules += [matrix.module for matrix in matrices] or [name.removesuffix(".weight")]
    return modules


def head_module(model: Network) -> str:
    """Return the name of the output head; '' without one."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "")


def _parameters(model: Network) -> list[_Parameter]:
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    known = {} if head is None else {id(head.weight): "head"}
    known[id(embeddings.weight)] = "embeddings"  # last: a tied head counts as embeddings
    config = model.config.to_dict()
    rows = []
    for name, parameter in model.named_parameters():
        weight = classify(name.removesuffix(".weight"), tuple(parameter.shape), config)
        types = dict.fromkeys(matrix.type for matrix in weight.matrices)
        if len(types) == 1:
            group = next(iter(types))
        elif types:  # several matrices in one tensor
            group = name.removesuffix(".weight").split(f".{weight.matrices[0].layer}.", 1)[1]
        else:
            group = known.get(id(parameter), "norms" if weight.kind == "norm" else "other")
        rows.append(_Parameter(name, group, tuple(parameter.shape), weight.matrices))
    return rows


def _match(selected: list[str], parameters: list[_Parameter]) -> set[str]:
    """Name the parameters that hold exactly the `selected` modules."""
    if selected == [EVERYTHING]:
        return {parameter.name for parameter in parameters}
    left, names = set(selected), set()
    for parameter in parameters:
        modules = {m.module for m in parameter.matrices} or {parameter.name.removesuffix(".weight")}
        if not modules & left:
            continue
        if missing := sorted(modules - left):
            raise not_whole(parameter.name, missing[0])
        names.add(parameter.name)
        left -= modules
    if left:
        first = next(module for module in selected if module in left)
        raise UserError(f"freeze.scan: the model has no {first}, which is selected; give the scan of this model")
    return names


def is_tied(model: Network) -> bool:
    """Return whether head and embeddings of a model, possibly on the meta device, are one tensor."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def check_tied(config: FreezeConfig, is_tied: bool) -> None:
    """Raise UserError where head and embeddings are one tensor, and only one of them would train."""
    if is_tied and config.head and config.adapter:
        raise UserError("freeze.head: this model's head is its embeddings, and takes no adapter; leave freeze.head out")
    if is_tied and config.embeddings != config.head:
        raise UserError(
            "freeze.head: this model's head and embeddings are one tensor; "
            "set freeze.embeddings and freeze.head both or neither"
        )


def _rows(parameters: list[_Parameter], names: set[str], rank: int | None) -> tuple[TableRow, ...]:
    rows: dict[str, TableRow] = {}
    for p in parameters:
        trains = p.name in names
        row = rows.get(p.group, TableRow(p.group))
        rows[p.group] = row.plus(TableRow(p.group, int(trains), 1, p.trained(rank) * trains, p.size))
    return tuple(rows.values())


def _lowest_layer(model: Network, parameters: list[_Parameter], names: set[str]) -> int:
    if any(p.group == "embeddings" and p.name in names for p in parameters):
        return 0
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    return min(layers, default=model.config.get_text_config().num_hidden_layers)
