"""What libraries say and a user does not see; and what is seen nevertheless."""

import logging
import os
import sys

import pytest

from starling_train.run import quiet

SAID = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."


@pytest.fixture
def logger(caplog):
    """DeepSpeed's, as it was before."""
    logger = logging.getLogger("DeepSpeed")
    kept, propagates = list(logger.filters), logger.propagate
    logger.filters.clear()
    logger.propagate = True
    yield logger
    logger.filters[:] = kept
    logger.propagate = propagates


def test_one_line_of_a_library_is_left_out_and_all_else_comes_through(logger, caplog):
    logger.warning(SAID)
    quiet.hush()
    quiet.hush()
    logger.warning(SAID)
    logger.warning("ZeRO has lost a shard")
    assert caplog.messages == [SAID, "ZeRO has lost a shard"] and len(logger.filters) == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_for_terminals(is_terminal, monkeypatch):
    for variable in quiet.BARS:
        monkeypatch.setenv(variable, "x")  # undone at the end
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    quiet.hush()
    assert [os.environ.get(variable) for variable in quiet.BARS] == [None if is_terminal else "1"] * 3


@pytest.mark.parametrize("shows_downloads", [True, False])
def test_bars_over_a_model_go_and_those_of_downloads_stay_as_they_were(shows_downloads, monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as theirs

    # whatever the environment of the tests says
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "HF_HUB_DISABLE_PROGRESS_BARS", None)
    was = are_progress_bars_disabled(), theirs.is_progress_bar_enabled()
    try:
        (enable_progress_bars if shows_downloads else disable_progress_bars)()
        quiet.no_bars_of_loading()
        assert not theirs.is_progress_bar_enabled() and are_progress_bars_disabled() != shows_downloads
    finally:
        (disable_progress_bars if was[0] else enable_progress_bars)()
        theirs._tqdm_active = was[1]
