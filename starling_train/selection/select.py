"""Which matrices train: the highest SNR of each module type, or a control to compare it with."""

import math
import random
from dataclasses import dataclass, replace
from fractions import Fraction

from starling_train.config.fields import UserError
from starling_train.config.sections import FreezeConfig
from starling_train.selection.records import Record

# What method `none` selects: no name but every parameter, norms and embeddings included.
EVERYTHING = "*"
SCORED = ("snr", "lowest")  # methods that cannot select without a score
# Replaces those before there are scores. Not an option of the configuration.
SMALLEST = "smallest"
# What a parameter costs in addition when it trains in bf16: gradient 2, the reference's own copy 2, fp32 master copy
# and its gradient 4 + 4, Adam's moments 8.
BYTES_PER_TRAINED_PARAMETER = 20


@dataclass(frozen=True)
class Group:
    """What is selected together: a matrix, all of a tensor, or all of a layer. `kind`: what it is ranked within."""

    records: tuple[Record, ...]
    kind: str
    layer: int

    @property
    def size(self) -> int:
        return sum(record.size for record in self.records)


Ranks = dict[Group, float | Fraction]


def select(config: FreezeConfig, records: dict[str, Record], seed: int) -> list[str]:
    """Name the modules to train, in model order; `["*"]` for method none, which `freeze.apply` understands.

    Methods: `snr` takes the highest normalised SNR, `lowest` (a control) the lowest, `random` (a control) as many at
    random, `layers` and `last_layers` whole decoder layers. The first three take `int(n * top_percent / 100)` of the n
    matrices of each type (scope `type`) or of all n (scope `global`), equal scores in model order; with unit `layer`,
    of all layers. Infinite scores (laserRMT's, where no noise is left) rank highest. Matrices that share a tensor of
    the model (stacked experts, fused q, k and v) train together, so they are taken together: a tensor counts as one,
    ranked by the mean rank of its matrices within their types among the tensors of its kind. A type of which no matrix
    has a score was not scanned: it is not selected by one, but for whole layers, and what shares a tensor.

    A budget replaces the percentage: `max_trainable` parameters, or `max_memory_gb` (decimal GB of what training adds,
    20 bytes a parameter). Matrices are then taken by their rank within the type, best first, until the next would not
    fit. Layers below `lowest_layer` are passed over: as many matrices, of lower rank. Raises UserError for an empty
    selection, and where a shape is missing, or the scores of a part of a type.
    """
    if config.method == "none":
        return [EVERYTHING]
    ordered = _in_model_order(records)
    if config.method in ("layers", "last_layers"):
        layers = _requested_layers(ordered, config)
        chosen = [record for record in ordered if _layer(record) in layers and _layer(record) >= config.lowest_layer]
    else:
        groups = _groups(ordered, config.unit, config.scope)
        if config.method in SCORED:
            scored = _scored(ordered)
            groups = [group for group in groups if not scored.isdisjoint(group.records)]
        ranks = _ranks(groups, config.method, seed, ordered)
        candidates = [group for group in groups if group.layer >= config.lowest_layer]
        budget = _budget(config.max_trainable, config.max_memory_gb)
        if budget is None:
            taken = _by_percent(groups, candidates, ranks, config.top_percent)
        else:
            taken = _by_budget(groups, candidates, ranks, budget)
        names = {record.module for group in taken for record in group.records}
        chosen = [record for record in ordered if record.module in names]
    if not chosen:
        raise UserError(_nothing(config))
    return [record.module for record in chosen]


def needs_scan(config: FreezeConfig) -> bool:
    """Return whether scores are needed that no file holds yet."""
    return config.method in SCORED and not config.scan


def select_unscored(config: FreezeConfig, records: dict[str, Record], seed: int) -> list[str]:
    """Select before there are scores: the smallest matrices where scores decide.

    An empty selection, a UserError here, is then empty whatever the scores are.
    """
    return select(replace(config, method=SMALLEST) if config.method in SCORED else config, records, seed)


def names_of(selected: list[str], records: dict[str, Record]) -> list[str]:
    """Return `selected`, or all names where it stands for everything."""
    return list(records) if selected == [EVERYTHING] else selected


def _nothing(config: FreezeConfig) -> str:
    lowest = f"(freeze.lowest_layer={config.lowest_layer})"
    if config.method in ("layers", "last_layers"):
        return f"freeze.{config.method}: selects no matrix {lowest}; name other layers"
    for key in ("max_trainable", "max_memory_gb"):
        if (value := getattr(config, key)) is not None:
            return f"freeze.{key}: {value:g} is less than the best matrix takes; raise it"
    return (
        f"freeze.top_percent: {config.top_percent:g} selects no matrix {lowest}; raise it, or lower freeze.lowest_layer"
    )


def _in_model_order(records: dict[str, Record]) -> list[Record]:
    """Sort records of decoder layers by layer; published files are ordered by type."""
    return sorted((r for r in records.values() if r.layer is not None), key=_layer)


def _layer(record: Record) -> int:
    assert record.layer is not None, "`_in_model_order` leaves out what lies outside the layers"
    return record.layer


def _requested_layers(ordered: list[Record], config: FreezeConfig) -> set[int]:
    present = sorted(set(map(_layer, ordered)))
    if config.method == "last_layers":
        return set(present[-config.last_layers :])
    if missing := sorted(set(config.layers) - set(present)):
        raise UserError(f"freeze.layers: the model has no layer {missing[0]}, only {present[0]} to {present[-1]}")
    return set(config.layers)


def _groups(ordered: list[Record], unit: str, scope: str) -> list[Group]:
    if unit == "matrix":
        tensors: dict[str, list[Record]] = {}
        for record in ordered:
            tensors.setdefault(record.parameter, []).append(record)
        return [Group(tuple(of), of[0].kind if scope == "type" else "", _layer(of[0])) for of in tensors.values()]
    layers = sorted(set(map(_layer, ordered)))
    return [Group(tuple(r for r in ordered if _layer(r) == layer), "", layer) for layer in layers]


def _ranks(groups: list[Group], method: str, seed: int, ordered: list[Record]) -> Ranks:
    """Give each group a number to sort by within its kind, lowest first.

    A layer's number is the mean rank of its matrices within their types, because scores of different types do not
    compare; so is that of a tensor with several matrices. Ranks are shares of the type, in exact fractions: a type may
    have one matrix a layer or one an expert, and equal means must stay equal.
    """
    if method == SMALLEST:
        return {group: group.size for group in groups}
    if method == "random":
        shuffled = random.Random(seed).sample(range(len(groups)), len(groups))
        return dict(zip(groups, shuffled, strict=True))
    scored = _scored(ordered)
    scores = {record: _score(record, method) for record in ordered if record in scored}
    if all(len(group.records) == 1 for group in groups):
        return {group: scores[group.records[0]] for group in groups}
    shares: dict[Record, Fraction] = {}
    for kind in {record.type for record in scores}:
        of_type = sorted((record for record in scores if record.type == kind), key=scores.__getitem__)
        shares |= {record: Fraction(index, len(of_type)) for index, record in enumerate(of_type)}
    ranked = {group: [shares[record] for record in group.records if record in shares] for group in groups}
    return {group: sum(of_group) / len(of_group) for group, of_group in ranked.items()}


def _scored(ordered: list[Record]) -> set[Record]:
    """Return the records of the types that have scores: all of them, where no type has any."""
    types = {record.type for record in ordered if record.snr is not None}
    return {record for record in ordered if not types or record.type in types}


def _score(record: Record, method: str) -> float:
    if record.snr is None or math.isnan(record.snr):
        raise UserError(f"freeze.scan: {record.module} has no SNR; scan the model again (starling_train.snr)")
    return -record.snr if method == "snr" else record.snr


def _by_percent(groups: list[Group], candidates: list[Group], ranks: Ranks, percent: float) -> list[Group]:
    taken = []
    for kind in dict.fromkeys(group.kind for group in candidates):
        of_kind = sorted((group for group in candidates if group.kind == kind), key=ranks.__getitem__)
        taken += of_kind[: int(sum(group.kind == kind for group in groups) * percent / 100)]
    return taken


def _budget(max_trainable: int | None, max_memory_gb: float | None) -> int | None:
    """Return how many parameters may train: the smaller of two budgets."""
    limits = [] if max_trainable is None else [max_trainable]
    if max_memory_gb is not None:
        limits.append(int(max_memory_gb * 1e9 / BYTES_PER_TRAINED_PARAMETER))
    return min(limits, default=None)


def _by_budget(groups: list[Group], candidates: list[Group], ranks: Ranks, budget: int) -> list[Group]:
    """Take the best of every kind first, then the second best of every kind: as with a percentage that grows."""
    queue = []
    for kind in dict.fromkeys(group.kind for group in candidates):
        of_kind = sorted((group for group in candidates if group.kind == kind), key=ranks.__getitem__)
        total = sum(group.kind == kind for group in groups)
        queue += [((index + 1) / total, group) for index, group in enumerate(of_kind)]
    taken: list[Group] = []
    used = 0
    for _, group in sorted(queue, key=lambda item: item[0]):
        if unknown := [record.module for record in group.records if not record.size]:
            raise UserError(f"freeze.scan: {unknown[0]} has no shape, which a budget needs; scan the model again")
        if used + group.size > budget:
            break
        taken, used = [*taken, group], used + group.size
    return taken
