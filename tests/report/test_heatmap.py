"""Plots of a scan: what is marked, that text can be read, that files are written without global state."""

import sys
from types import SimpleNamespace

import pytest

from starling_train.report.plots import heatmap, spectrum
from starling_train.report.scan import passed_over, plan, table

TYPES = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")


def make(layers, types=TYPES, experts=1):
    records = {}
    for layer in range(layers):
        for column, kind in enumerate(types):
            for expert in range(experts):
                name = f"model.layers.{layer}.{expert}.{kind}"
                snr = 1.0 + layer + 0.1 * expert + 100 * column
                records[name] = SimpleNamespace(module=name, type=kind, layer=layer, snr=snr, size=10, fragile=False)
    return records


def frames(figure):
    return {(round(p.get_x() + 0.46), round(p.get_y() + 0.42)) for p in figure.axes[0].patches}


@pytest.mark.parametrize("layers", [2, 32, 60])
def test_marks_the_selection_and_can_be_read(layers):
    records = make(layers)
    figure = heatmap.draw(records, ["model.layers.1.0.mlp.up_proj", "model.layers.0.0.mlp.down_proj"])
    axes = figure.axes[0]
    assert frames(figure) == {(1, 1), (2, 0)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["q_proj", "up_proj", "down_proj"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(i) for i in range(layers)]
    assert axes.texts[0].get_text() == "1" and len(axes.texts) == 3 * layers
    # no text is higher than its row: 7 points in a row of at least that many
    figure.canvas.draw()
    row = axes.get_window_extent().height / layers
    assert max(text.get_window_extent().height for text in axes.texts) <= row


def test_colour_is_the_rank_within_the_type():
    image = heatmap.draw(make(5), []).axes[0].images[0].get_array()
    assert image[:, 0].tolist() == image[:, 2].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_everything_and_nothing():
    assert len(frames(heatmap.draw(make(3), ["*"]))) == 9
    assert frames(heatmap.draw(make(3), [])) == set()


def test_missing_scores_and_equal_short_names():
    records = make(2, ("a.proj", "b.proj"))
    records["model.layers.0.0.a.proj"].snr = None
    axes = heatmap.draw(records, ["model.layers.0.0.a.proj"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a.proj", "b.proj"]
    assert axes.texts[0].get_text() == ""


def test_experts_share_a_cell():
    figure = heatmap.draw(make(2, experts=3), ["model.layers.0.1.mlp.up_proj"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 6 and texts[1] == "101 (1/3)" and texts[0] == "1.1 (0/3)"
    assert frames(figure) == {(1, 0)}


def test_png_without_pyplot(tmp_path):
    heatmap.save(heatmap.draw(make(2), ["*"]), tmp_path / "heatmap.png")
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_spectrum_plot():
    score = SimpleNamespace(threshold=2.0, rank=2, snr=1.5, fragile=True)
    axes = spectrum.draw([4.0, 3.0, 1.0, 0.5, 0.0], score, "mlp").axes[0]
    signal, noise, threshold = axes.lines
    assert signal.get_ydata().tolist() == [4.0, 3.0] and noise.get_xdata().tolist() == [3, 4, 5]
    assert set(threshold.get_ydata()) == {2.0}
    assert axes.get_title() == "mlp: SNR 1.5 (fragile)" and axes.get_yscale() == "log"


def test_text():
    records = make(4)
    lines = table(records, ["model.layers.3.0.mlp.up_proj"]).splitlines()
    assert lines[2].split() == ["mlp.up_proj", "4", "1", "0", "101", "102.5", "104"]
    assert lines[-1] == "selected: 1 of 12 matrices, 10 of 120 parameters"
    assert table(records, ["*"]).endswith("selected: 12 of 12 matrices, 120 of 120 parameters")
    records["model.layers.0.0.mlp.up_proj"].fragile = True
    assert "fragile:" in table(records, [])
    assert plan(records, "snr", 3).endswith("120 parameters; freeze.method=snr would select 3 of 12 matrices")
    assert plan(records, "snr", 3, at_most=True).endswith("would select at most 3 of 12 matrices")
    assert plan(records, "none", 1).endswith("would select everything")
    assert passed_over({}, {}) == ""
    assert passed_over({"a.*.b": 2}, {"a copy": 3}).splitlines() == [
        "", "not scanned, of no known module type: a.*.b (2)", "left out: a copy (3)",
    ]  # fmt: skip
