"""The inputs of a search for lower ranks, before it reads a weight: model, matrices, scan, and the measure's data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starling_train.config.fields import UserError
from starling_train.config.laser import LONGEST_WINDOW, LaserConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starling_train.data.chat import Chat
    from starling_train.models.budget import Budget
    from starling_train.models.causal_lm import CausalLM
    from starling_train.models.families.positions import Positions
    from starling_train.models.source import ModelSource
    from starling_train.rank_search.criteria import Criterion
    from starling_train.rank_search.search import Search
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime
    from starling_train.selection.records import Record


@dataclass
class Inputs:
    """Everything that is known and checked before a weight is read."""

    config: LaserConfig
    source: "ModelSource"
    chat: "Chat"
    listing: "dict[str, Record]"
    records: "dict[str, Record] | None"  # of freeze.scan; None: the model must be scanned
    criterion: "Criterion"

    @classmethod
    def find(cls, config: LaserConfig, runtime: "Runtime", run: "RunDirectory") -> "Inputs":
        """Check everything, the cheap things first, and read the data. Raises UserError."""
        from starling_train.files import disk
        from starling_train.models import header_checks, quantisation, written
        from starling_train.models.families.positions import positions_of
        from starling_train.models.source import ModelSource
        from starling_train.rank_search import search
        from starling_train.selection import scans
        from starling_train.selection.listing import check_weights, list_matrices
        from starling_train.training import policy

        disk.check_directory(run.path, "run_dir")
        model, laser = config.model, config.laser
        source = ModelSource.open(model.path, "model.path", model.revision, weights=not config.dry_run)
        quantisation.check_acceleration(attention=model.attention)
        model_config = source.policy_config
        chat = policy.load_chat(source, model)
        policy.check_vocabulary(model_config, chat)
        written.check_writable(chat, f"model.path: {source.directory}")
        window = window_of(laser.window, positions_of(model_config))
        if not config.dry_run:
            header_checks.check_policy(source)
            check_weights(source)
        listing = list_matrices(source)
        search.count_requested(listing, laser.modules, laser.layers, laser.types, laser.percent)
        records = scans.read_scan(config.freeze, source) if config.freeze.scan else None
        if records and (unranked := [m for m, record in records.items() if record.rank is None or record.raw is None]):
            raise UserError(
                f"freeze.scan: {config.freeze.scan} has no rank of {unranked[0]}; give the snr.json of our own scan, "
                "or leave it out"
            )
        return cls(config, source, chat, listing, records, criterion_of(config, chat, window, runtime))

    def describe(self) -> str:
        """Return what would be tried, and how it would be judged."""
        from starling_train.rank_search import search

        laser = self.config.laser
        tries = search.count_requested(self.listing, laser.modules, laser.layers, laser.types, laser.percent)
        return (
            f"would try {tries} of {len(self.listing)} matrices of {self.source.directory}, those "
            f"with the lowest raw SNR ({self.config.freeze.dialect}) first\n{self.judged()}"
        )

    def scan(self, runtime: "Runtime", run: "RunDirectory") -> "dict[str, Record]":
        """Return the scan that was read, or scan the model, with the journal in the run's directory."""
        from starling_train.selection import scans

        dialect, device = self.config.freeze.dialect, runtime.device.type
        return self.records or scans.scan(self.source, dialect, device, run.path)

    def load_model(self, runtime: "Runtime") -> "CausalLM":
        """Load the model on the run's device, in evaluation mode; print what falls back for it."""
        from starling_train.models import causal_lm
        from starling_train.models.families.ways import ways_of
        from starling_train.rollout import start_check

        model, device = self.config.model, str(runtime.device)
        loaded = causal_lm.load_causal_lm(self.source, dtype=model.dtype, attention=model.attention, device=device)
        if line := start_check.line(loaded.eval(), ways_of(loaded), ""):
            print(line, flush=True)
        return loaded

    def judged(self) -> str:
        """Return in words what judges a try."""
        by = self.criterion
        source = self.config.perplexity.path if by.name == "perplexity" else self.config.preference.path
        dropped = f"; {by.dropped} longer than laser.window left out" if by.dropped else ""
        dropped += by.unread.told()
        line = f"{by.name} on {len(by.judging)} {by.unit} of {source}, {len(by.held_out)} held out{dropped}"
        return "\n".join([line, *self.chat.lines()])

    def attempts(
        self,
        model: "CausalLM",
        candidates: "Sequence[Record]",
        start: float,
        budget: "Budget",
        run: "RunDirectory",
    ) -> "Search":
        """Return the search over the candidates, judged by the criterion.

        model: loaded from the source.
        candidates: in the order in which they are tried.
        start: the measure before anything is changed.
        budget: tokens per forward pass.
        run: the run's directory.
        """
        from starling_train.rank_search.search import Search, SearchJudge

        criterion, laser = self.criterion, self.config.laser
        judge = SearchJudge(laser.measure, lambda: criterion.measure(model, budget), criterion.is_not_worse)
        return Search(model, self.source, candidates, judge, start, run.path, laser.factored)


def window_of(requested: int | None, positions: "Positions") -> int:
    """Return how many tokens go through the model together. Raises UserError for more than it has positions."""
    if requested and requested > positions.most:
        raise UserError(f"laser.window: {requested} is more than the model's {positions.what}; lower it")
    return requested or min(positions.most, LONGEST_WINDOW)


def criterion_of(config: LaserConfig, chat: "Chat", window: int, runtime: "Runtime") -> "Criterion":
    """Read the data of the measure and return the criterion. Raises UserError.

    config: names measure and data.
    chat: the model's tokenizer and template.
    window: tokens that are read together.
    runtime: its random numbers split the data.
    """
    from starling_train.rank_search import criteria

    laser = config.laser
    split = criteria.Split(laser.samples, laser.held_out_percent, runtime.generator("laser"))
    if laser.measure == "perplexity":
        return criteria.of_text(config.perplexity, chat, window, split)
    return criteria.of_preferences(laser.measure, config.preference, chat, window, split)


def measure(inputs: Inputs, model: "CausalLM", budget: Any) -> dict[str, Any]:
    """Measure the model; return that, with what identifies model and data. Raises UserError if it is not finite."""
    import math

    judging = inputs.criterion.measure(model, budget)
    held_out = inputs.criterion.measure_held_out(model, budget)
    if not all(math.isfinite(value) for value in (judging, held_out) if value is not None):
        raise UserError(f"model.path: {inputs.criterion.name} of the model is not finite; try model.dtype=float32")
    which = {"model": inputs.source.fingerprint, "data": inputs.criterion.digest()}
    return which | {"judging": judging, "held_out": held_out}
