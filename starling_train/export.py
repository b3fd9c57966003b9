"""python -m starling_train.export run_dir=runs/NAME output=DIR: a run's checkpoint as a whole Hugging Face model."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train.cli import command, read_settings
from starling_train.config.export import ExportConfig, check
from starling_train.config.fields import UserError, given
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig

if TYPE_CHECKING:
    from starling_train.run.saved import SavedRun
    from starling_train.training.trained import TrainedModel

CARD = "README.md"


@command(check, ExportConfig, "export")
def main(config: ExportConfig) -> None:
    """Find the checkpoint, check base model and disk, write the model, upload it."""
    from starling_train.files import disk, hub_upload
    from starling_train.report.card import model_card
    from starling_train.run import interruption, saved
    from starling_train.training.trained import plan

    interruption.heed(signal.SIGTERM, signal.SIGUSR1)  # a half-written model is removed on the way out

    # 1. What can be wrong, from headers and small files.
    output = Path(given(config.output)).expanduser().resolve()
    if config.push:
        hub_upload.check_push(config.push, "push")
    is_written = bool(config.push) and (output / CARD).is_file()  # by an earlier start, whose upload failed perhaps
    if not is_written:
        disk.check_new(output, "output")
    run = saved.find(Path(given(config.run_dir)).expanduser(), config.checkpoint)
    trained = trained_by(run, config.base)
    export = plan(run, trained)
    if not is_written:
        disk.check_fits(output, export.size, "the model's weights", "free some, or give another output", "output")
    if config.dry_run:
        share = export.table.parameters_trained / export.table.parameters_of
        print(
            f"would write {trained.what} of step {run.step} to {output}: {export.size / 1e9:.3g} GB\n"
            f"base model {trained.directory}, and {len(export.table.names)} tensors of {run.checkpoint}, {share:.1%} "
            "of the parameters\n"
            "not compared yet: the bytes of the checkpoint and of the base model"
            + (f"\nwould upload it to {config.push} on the hub" if config.push else "")
        )
        return
    repository = hub_upload.create(config.push, "push", config.push_private) if config.push else None

    # 2. The bytes of the checkpoint and of its base model.
    base = saved.verify(run, trained.directory)

    # 3. The model, whole or not at all.
    if is_written and not model_card.is_of((output / CARD).read_text(errors="replace"), run, trained, base):
        disk.check_new(output, "output")  # it holds something else: refused
    if not is_written:
        write(output, run, trained, model_card.render(run, trained, export.table, base))
    print(f"{trained.what} of step {run.step}: {output}")

    # 4. The hub. Whatever it says, the directory stays.
    if repository:
        commit = f"{trained.what.capitalize()} of step {run.step} of the run {run.path.resolve().name}"
        print(f"uploaded to {hub_upload.upload(output, repository, 'push', commit)}")


def write(output: Path, run: "SavedRun", trained: "TrainedModel", card: str) -> None:
    """Write model and card into a new directory, whole or not at all. Raises UserError."""
    from starling_train.files import disk, whole
    from starling_train.training.trained import load_trained

    with disk.disk_errors(output):
        model = load_trained(run, trained)

        def fill(directory: Path) -> None:
            directory.mkdir(parents=True)
            trained.write(model, directory)
            (directory / CARD).write_text(card, encoding="utf-8", errors="replace")

        whole.write_whole(output, fill)


def trained_by(run: "SavedRun", base: str | None) -> "TrainedModel":
    """Return what the run trains: a reward model where its config.yaml has a section `rm`, else a policy."""
    from starling_train.training.policy import TEMPLATE
    from starling_train.training.trained import TrainedPolicy, TrainedReward

    if not isinstance(run.settings.get("model"), dict):
        raise UserError(f"run_dir: {run.config_file} names no model; give the directory of a training run")
    sections = {name: run.settings[name] for name in ("model", "freeze", "rm") if name in run.settings}
    if "rm" in sections:
        return TrainedReward(read_settings(sections, RmConfig, run.config_file), base)
    settings = read_settings(sections, PpoConfig, run.config_file)
    model, kept = settings.model, run.path / TEMPLATE
    if kept.is_file():  # with its values put in; the file that the run was given may have gone since
        model = replace(model, template=str(kept), template_kwargs={})
    return TrainedPolicy(model, settings.freeze, base)


if __name__ == "__main__":
    main()
