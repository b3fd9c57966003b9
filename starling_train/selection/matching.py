"""A scan beside the model that it is to be of: whose score each of its names is, and what is passed over.

Published scans name more than the matrices of decoder layers (Spectrum preselects norms, the head and the embeddings),
fused tensors as one, and parameters as some wrapper called them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from starling_train.config.fields import UserError
from starling_train.selection.module_types import EMBEDDINGS, HEADS, LAYER, layer_of
from starling_train.selection.records import Record

# What torch.compile, data parallelism, FSDP and PEFT put into names.
WRAPPERS = re.compile(
    r"^(?:base_model\.model\.|module\.)+|(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Buffers that models kept in each layer before transformers 5.
BUFFERS = re.compile(r"(?:.+\.)?(?:rotary_emb(?:\..+)?|inv_freq|masked_bias|attn\.bias|attention\.bias)")
SHOWN = 6  # types in a line; the others are counted
Known = Callable[[], Iterable[str]]


@dataclass
class MatchedScan:
    """A scan under the names of a model's matrices, in their order; a matrix without a score has None.

    passed_over: by type, how many names are the model's but no matrices of its layers.
    fused: by type, how many scores are of a tensor that holds several matrices, and stand for each of them.
    unscored: by type, how many matrices have no score; never a part of a type.
    renamed: how many names had another prefix.
    used: the names of the scan whose scores are in `records`.
    """

    records: dict[str, Record] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    fused: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)
    renamed: int = 0
    used: set[str] = field(default_factory=set)

    def notes(self) -> list[str]:
        """Return what a reader of the scan should know: a clause for each, none for a scan of ours."""
        notes = []
        if self.passed_over:
            notes.append(f"passed over, not matrices of the layers: {_counts(self.passed_over)}")
        if self.fused:
            notes.append(f"one score for all matrices of a tensor: {_counts(self.fused)}")
        if self.unscored:
            notes.append(f"no score, so not selected by one: {_counts(self.unscored)}")
        if self.renamed:
            notes.append(f"read without the prefix of their names: {self.renamed}")
        return notes


def _counts(counts: Counter[str]) -> str:
    shown = [f"{kind} ({n})" for kind, n in counts.most_common(SHOWN)]
    return ", ".join(shown) + (f" and {len(counts) - SHOWN} more types" if len(counts) > SHOWN else "")


class _Names:
    """What a model has besides its matrices, asked for a name at a time."""

    def __init__(self, names: Iterable[str], listing: dict[str, Record]):
        self._names = {*names, *listing, *_holders(listing)}
        self._in_layer = {_in_layer(name) for name in self._names}
        self.layers = {layer_of(module) for module in listing}

    def has(self, name: str) -> bool:
        """Return whether the model has a parameter, buffer or module of this name, or had such a one in its day."""
        plain = plain_name(name)
        if {name, name.removesuffix(".weight"), plain} & self._names or _in_layer(plain) in self._in_layer:
            return True
        is_inside = (layer := layer_of(plain)) is None or layer in self.layers
        return bool(EMBEDDINGS.fullmatch(plain) or HEADS.fullmatch(plain) or (is_inside and BUFFERS.fullmatch(plain)))


def match(scan: dict[str, Record], listing: dict[str, Record], source: str, known: Known = tuple) -> MatchedScan:
    """Match a scan with a model's matrices.

    source: the scan's file, for messages.
    known: gives what the model has besides its matrices; asked only for names that are none of theirs.
    Raises UserError where the two are not of one model: a name that the model does not have, a type of matrices of
    which only some are in the scan, or another shape.
    """
    matched = MatchedScan()
    own = _fill(scan, listing, matched)
    _check_names(scan, own, listing, source, known, matched)
    for module, record in own.items():
        if record.shape and record.shape != listing[module].shape:
            raise UserError(
                f"freeze.scan: {source} has {module} as {record.shape}, the model as {listing[module].shape}; give the "
                "scan of this model"
            )
    _check_missing(own, listing, source)
    for module, listed in listing.items():
        matched.records[module] = _named_as(own[module], listed) if module in own else replace(listed, snr=None)
    scored = {record.type for record in matched.records.values() if record.snr is not None}
    matched.unscored.update(record.type for record in listing.values() if record.type not in scored)
    return matched


def match_records(
    scan: dict[str, Record], listing: dict[str, Record], source: str, known: Known = tuple
) -> dict[str, Record]:
    """Return the records of `match`: the scan's scores under the names, types and holders of the listing."""
    return match(scan, listing, source, known).records


def fill(scan: dict[str, Record], listing: dict[str, Record], known: Known = tuple) -> dict[str, Record]:
    """Reorder any scan as `listing`, with its types, holders and fused tensors, and its shapes where the scan has none.

    What only the scan holds comes last, without what the model has besides its matrices.
    """
    matched = MatchedScan()
    own = _fill(scan, listing, matched)
    others = [name for name in scan if name not in matched.used]
    names = _Names(known() if others else (), listing)
    filled = {module: _named_as(own[module], listed) for module, listed in listing.items() if module in own}
    return filled | {name: scan[name] for name in others if not names.has(name)}


def _fill(scan: dict[str, Record], listing: dict[str, Record], matched: MatchedScan) -> dict[str, Record]:
    """Find the record of each module of the listing that the scan knows.

    A name counts as it is; then without what a wrapper put into it, or under the model's own name for its decoder. One
    of a tensor that holds several modules is theirs, unless they have records of their own.
    """
    parts: dict[str, list[str]] = {}
    for module, listed in listing.items():
        if listed.holder:
            parts.setdefault(listed.holder.removesuffix(".weight"), []).append(module)
    in_layer = {_in_layer(name): name for name in (*parts, *listing)}
    as_is = {name: name.removesuffix(".weight") for name in scan}
    renamed = {name: in_layer.get(_in_layer(plain_name(name)), "") for name in scan}
    own: dict[str, Record] = {}
    for names, holds in ((as_is, False), (renamed, False), (as_is, True), (renamed, True)):
        for name, ours in names.items():
            modules = parts.get(ours, []) if holds else [ours] if ours in listing else []
            new = [module for module in modules if module not in own]
            if not new or name in matched.used:
                continue
            is_fused = len(modules) > 1
            score = Record(ours, "", snr=scan[name].snr, dialect=scan[name].dialect) if is_fused else scan[name]
            own |= dict.fromkeys(new, score)
            matched.used.add(name)
            matched.renamed += ours != name.removesuffix(".weight")
            if is_fused:
                matched.fused[_type_in_layer(ours)] += 1
    return own


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers put into it, and without `.weight`."""
    return WRAPPERS.sub("", name).removesuffix(".weight")


def _in_layer(name: str) -> tuple[str, str] | str:
    """Return the layer's number and the name inside it, whatever the decoder is called; other names as they are."""
    found = LAYER.fullmatch(name)
    return (found[1], found[2]) if found else name


def _type_in_layer(name: str) -> str:
    plain = plain_name(name)
    found = LAYER.fullmatch(plain)
    return re.sub(r"\.\d+\.", ".*.", found[2]) if found else plain


def _named_as(record: Record, listed: Record) -> Record:
    """Put a score under the model's name for its matrix, with the type that goes with that name.

    Spectrum finds modules by a part of their names, so that a `gate_proj` may be of its type `mlp.gate`.
    """
    shape = record.shape or listed.shape
    return replace(record, module=listed.module, type=listed.type, shape=shape, holder=listed.holder)


def _check_names(
    scan: dict[str, Record],
    own: dict[str, Record],
    listing: dict[str, Record],
    source: str,
    known: Known,
    matched: MatchedScan,
) -> None:
    """Count the names that are not used; raise UserError for those that the model does not have."""
    others = [name for name in scan if name not in matched.used]
    if not others:
        return
    names = _Names(known(), listing)
    unknown = [name for name in others if not names.has(name)]
    if unknown:
        numbers = [layer for name in unknown if (layer := layer_of(plain_name(name))) is not None]
        highest, last = max(numbers, default=-1), max(layer for layer in names.layers if layer is not None)
        beyond = f"; its highest layer is {highest}, the model's {last}" if highest > last else ""
        raise UserError(
            f"freeze.scan: {_first_of(unknown)} not in the model ({source}: {len(unknown)} of {len(scan)} names"
            f"{beyond}); give the scan of this model"
        )
    matched.passed_over.update(map(_type_in_layer, others))


def _check_missing(own: dict[str, Record], listing: dict[str, Record], source: str) -> None:
    """Raise UserError where a part of a type's matrices is missing, or everything.

    A type that is missing as a whole was not scanned: Spectrum asks which ones to scan.
    """
    scanned = {listing[module].type for module in own}
    missing = [module for module, listed in listing.items() if module not in own and listed.type in scanned]
    if not own:
        missing = list(listing)
    if missing:
        raise UserError(
            f"freeze.scan: {_first_of(missing)} not in {source} ({len(missing)} of the model's {len(listing)} matrices "
            "are without a score); give the scan of this model"
        )


def _first_of(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _holders(listing: dict[str, Record]) -> set[str]:
    return {record.holder.removesuffix(".weight") for record in listing.values() if record.holder}
