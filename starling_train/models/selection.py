"""Which matrices train: the highest SNR of each module type, or a control to compare it with."""

import random
from collections.abc import Sequence

from starling_train.config import UserError
from starling_train.models.snr_scan import Record

# What `method="none"` selects: no name but every parameter, norms and embeddings included.
EVERYTHING = "*"


def select(
    records: dict[str, Record],
    *,
    method: str,
    unit: str = "matrix",
    top_percent: float = 25.0,
    last_layers: int = 4,
    layers: Sequence[int] = (),
    lowest_layer: int = 0,
    seed: int = 0,
) -> list[str]:
    """Names of the modules to train, in model order; `["*"]` for method none, which `freeze.apply` understands.

    `snr` takes the highest normalised SNR of each type, `int(n * top_percent / 100)` of n, ties in model order, as
    Spectrum does; infinite scores (laserRMT's, where no noise is left) rank first. `random` takes as many of each
    type. Layers below `lowest_layer` are no candidates. Raises UserError for an empty selection.
    """
    if method == "none":
        return [EVERYTHING]
    _check(top_percent, method)
    order = {m: (r.layer or 0, i) for i, (m, r) in enumerate(records.items())}
    candidates = [
        r for r in sorted(records.values(), key=lambda r: order[r.module]) if (r.layer or 0) >= lowest_layer
    ]
    if method in ("layers", "last_layers"):
        chosen = _of_layers(candidates, _wanted_layers(records, method, last_layers, layers))
    else:
        chosen = _top(candidates, method, unit, top_percent, seed)
    if not chosen:
        raise UserError(
            f"freeze.method: {method} selects none of {len(records)} matrices "
            f"(freeze.top_percent={top_percent:g}, freeze.lowest_layer={lowest_layer}); "
            "raise freeze.top_percent or lower freeze.lowest_layer"
        )
    return [record.module for record in chosen]


def _check(top_percent: float, method: str) -> None:
    if not 0 < top_percent <= 100:
        raise UserError(f"freeze.top_percent: {top_percent:g} is not in (0, 100]; give a percentage")
    if method not in ("snr", "random", "layers", "last_layers"):
        raise UserError(f"freeze.method: {method} is unknown; one of snr, random, layers, last_layers, none")


def _wanted_layers(
    records: dict[str, Record], method: str, last_layers: int, layers: Sequence[int]
) -> set[int]:
    present = sorted({r.layer for r in records.values() if r.layer is not None})
    if method == "last_layers":
        return set(present[-last_layers:] if last_layers > 0 else [])
    if missing := sorted(set(layers) - set(present)):
        raise UserError(
            f"freeze.layers: the model has no layer {missing[0]}; it has {present[0]} to {present[-1]}"
        )
    return set(layers)


def _of_layers(candidates: list[Record], wanted: set[int]) -> list[Record]:
    return [record for record in candidates if record.layer in wanted]


def _top(candidates: list[Record], method: str, unit: str, top_percent: float, seed: int) -> list[Record]:
    rank = _by_snr if method == "snr" else _Shuffle(seed)
    if unit == "layer":
        return _of_layers(candidates, _top_layers(candidates, rank, top_percent))
    if unit != "matrix":
        raise UserError(f"freeze.unit: {unit} is unknown; matrix or layer")
    chosen: set[str] = set()
    for kind in dict.fromkeys(record.type for record in candidates):
        of_type = [record for record in candidates if record.type == kind]
        chosen |= {record.module for record in rank(of_type)[: int(len(of_type) * top_percent / 100)]}
    return [record for record in candidates if record.module in chosen]


def _by_snr(records: list[Record]) -> list[Record]:
    for record in records:
        if record.snr is None or record.snr != record.snr:
            raise UserError(f"freeze.scan: {record.module} has no SNR; scan the model again")
    return sorted(records, key=lambda record: -record.snr)


class _Shuffle:
    """Ranks at random, the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = random.Random(seed)

    def __call__(self, records: list[Record]) -> list[Record]:
        return self.generator.sample(records, len(records))


def _top_layers(candidates: list[Record], rank, top_percent: float) -> set[int]:
    """Layers by the mean of their matrices' ranks within the type (0 = best), the lowest mean first.

    Ranks, because SNR values of different module types do not compare.
    """
    places: dict[int, list[int]] = {}
    for kind in dict.fromkeys(record.type for record in candidates):
        for place, record in enumerate(rank([r for r in candidates if r.type == kind])):
            places.setdefault(record.layer, []).append(place)
    ranked = sorted(places, key=lambda layer: (sum(places[layer]) / len(places[layer]), layer))
    return set(ranked[: int(len(ranked) * top_percent / 100)])
