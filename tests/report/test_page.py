"""The report page: safe with hostile text, true to the files, whole without some of them, fit to print."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import HOSTILE, TYPES, write_lines, write_run

from starling_train.config.fields import UserError
from starling_train.report import page
from starling_train.report.markup import duration, plain, redact
from starling_train.report.read_run import read, selected_modules
from starling_train.report.samples import pair
from starling_train.report.sections import ranges

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags with attributes, all text, and a check that every element is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def plots(self) -> list[str]:
        return [str(attrs["data-plot"]) for _, attrs in self.tags if "data-plot" in attrs]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory) -> Path:
    """A run of 40 steps with its page written. Tests only read it."""
    run = write_run(tmp_path_factory.mktemp("report") / "full")
    page.write(run)
    return run


@pytest.fixture(scope="module")
def html(full_run) -> str:
    return (full_run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(html) -> Page:
    return Page(html)


def rendered(run: Path) -> Page:
    return Page(page.write(run).read_text(encoding="utf-8"))


def tile(html: str, key: str) -> list[float]:
    """The exact numbers of one tile, in order."""
    found = re.search(rf'<div class="tile" data-key="{re.escape(key)}">(.*?)</div>', html, re.S)
    assert found, key
    return [float(value) for value in re.findall(r'<data value="([^"]+)"', found[1])]


def test_page_is_self_contained(parsed, html):
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"img", "link", "iframe", "object", "embed", "form", "base"}
    for _, attrs in parsed.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert "http" not in (attrs.get("style") or "")
    assert len(html.encode()) < 300_000  # of a whole page's 1 MB: answers are the rest


def test_only_the_pages_own_script_may_run(parsed, html):
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv")]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert policies == [policy]
    assert not re.search(r"fetch|XMLHttp|import\b|eval\b|innerHTML", script)


def test_only_sample_text_and_config_mention_the_web(html):
    places = {html[m.start() : m.start() + 19] for m in re.finditer("https?:", html)}
    assert places == {"https://example.org", "http://***@127.0.0.", "http://www.w3.org/2"}  # the last names SVG


def test_hostile_text_is_shown_and_not_run(html, parsed):
    visible = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert html.count("<script") == 1 and "<img" not in html
    assert parsed.text.count(visible) == 3  # prompt, answer before, answer after
    assert html.count(escape(visible)) == 3


def test_hostile_names_are_escaped_everywhere(tmp_path):
    run = write_run(tmp_path / "run", steps=2, every=1)
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"name": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}, "command": HOSTILE}
    summary["trainable"]["by_type"][0]["type"] = HOSTILE
    (run / "summary.json").write_text(json.dumps(summary))
    records = {f"model.layers.0.{HOSTILE}": {"snr": 2.0, "type": HOSTILE, "note": HOSTILE}}
    (run / "snr.json").write_text(json.dumps(records))
    lines = [{"step": step, f"eval/{HOSTILE}": 1.0 + step, "eval/$accuracy": 0.5} for step in range(3)]
    write_lines(run / "metrics.jsonl", lines)
    names = [tag for tag, _ in rendered(run).tags]
    assert names.count("script") == 1 and "img" not in names


@pytest.mark.parametrize("key", ["eval/score_mean", "eval/gold_mean", "eval/kl_reference", "eval/length_mean"])
def test_tiles_show_first_last_and_change_of_the_file(full_run, html, key):
    lines = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()]
    values = [line[key] for line in lines if key in line]
    assert tile(html, key)[:3] == [values[0], values[-1], values[-1] - values[0]]


def test_score_change_is_also_in_starting_deviations(html):
    first, last, gain, spreads = tile(html, "eval/score_mean")
    assert (first, last) == (-0.512345, pytest.approx(1.237655))
    assert gain == pytest.approx(1.75)
    assert spreads == pytest.approx(1.75 / 0.9)


def test_function_calling_is_in_percent_and_points(html):
    assert tile(html, "eval/function_calling") == pytest.approx([92.0, 90.5, -1.5])


def test_every_panel_is_drawn_once(parsed):
    drawn = ["reward", "skills", "eval-function_calling", "kl", "length", "policy", "value", "optimiser"]
    assert parsed.plots() == [*drawn, "time", "snr"]
    assert "What is missing" not in parsed.text


def test_summary_configuration_and_versions_are_there(parsed):
    for text in (
        "Finished, 40 of 40 steps",
        "cpu, 2 threads",
        "3 min 7 s",
        "0123456789ab",
        "2.13.0",
        "top_percent: 25.0",
    ):
        assert text in parsed.text


def test_secrets_of_the_configuration_are_not_shown(html):
    assert "sesame-open" not in html and "hunter2" not in html
    assert "max_prompt_tokens: 128" in html
    assert redact("reward.token=abc x=1") == "reward.token=*** x=1"
    assert redact("token: null") == "token: null"


def test_ids_are_unique_so_that_plots_do_not_borrow_from_each_other(parsed):
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert ids and len(ids) == len(set(ids))


def test_the_same_files_under_the_same_path_give_the_same_bytes(full_run, tmp_path, monkeypatch):
    pages = []
    for folder in ("a", "b"):
        shutil.copytree(full_run, tmp_path / folder / "run", ignore=shutil.ignore_patterns("report.html"))
        monkeypatch.chdir(tmp_path / folder)
        pages.append(page.write(Path("run")).read_bytes())
        assert [path.name for path in Path("run").glob("report*")] == ["report.html"]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_runs(tmp_path, steps):
    run = write_run(tmp_path / "run", steps=steps, every=10, slim=steps != 1)
    shown = rendered(run)
    assert f"Finished, {steps} of {steps} steps" in shown.text
    assert "reward" in shown.plots()
    assert ("measured once" in shown.text) == (steps == 0)
    assert ("there is no “after” yet" in shown.text) == (steps == 0)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "samples.jsonl", "snr.json", "unfrozen.yaml", "config.yaml", "summary.json"]
)
def test_a_missing_file_is_named_and_the_rest_is_shown(tmp_path, name):
    run = write_run(tmp_path / "run", steps=1, every=1, layers=2, slim=True)
    (run / name).unlink()
    shown = rendered(run)
    assert f"{name} is not there" in shown.text
    assert ("reward" in shown.plots()) == (name != "metrics.jsonl")
    assert ("snr" in shown.plots()) == (name != "snr.json")
    assert ("Not finished" in shown.text) == (name == "summary.json")


def test_empty_directory_gives_a_page(tmp_path):
    shown = rendered(tmp_path)
    assert shown.plots() == []
    assert "No step has been recorded yet." in shown.text


def test_first_and_last_come_from_the_summary_where_the_metrics_are_gone(tmp_path):
    run = write_run(tmp_path / "run", steps=4, every=2, slim=True)
    (run / "metrics.jsonl").unlink()
    text = page.write(run).read_text()
    assert tile(text, "eval/score_mean")[:2] == [-0.512345, pytest.approx(1.237655)]


def test_half_written_lines_and_broken_files_are_reported(tmp_path):
    run = write_run(tmp_path / "run", steps=2, every=1, slim=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/sc')
    (run / "snr.json").write_text('{"model.layers.0')
    (run / "summary.json").write_text("[1]")
    text = rendered(run).text
    assert "metrics.jsonl: 1 of 4 lines are not JSON objects and were left out" in text
    assert "snr.json cannot be read as a mapping" in text
    assert "summary.json cannot be read as a mapping" in text


def test_nulls_are_gaps_and_not_zeros(tmp_path):
    run = write_run(tmp_path / "run", steps=2, every=10)
    (run / "summary.json").unlink()
    lines = [{"step": step, "kl/reference": value} for step, value in enumerate([None, 2.5, None, 3.5])]
    write_lines(run / "metrics.jsonl", lines)
    text = page.write(run).read_text()
    assert tile(text, "kl/reference") == [2.5, 3.5, 1.0]


def test_other_suites_get_a_tile_and_a_plot(tmp_path):
    run = write_run(tmp_path / "run", steps=2, every=1)
    lines = [
        {
            "step": s,
            "eval/preference_accuracy": 0.6 + s / 10,
            "eval/perplexity": 9.0 - s,
            "eval/preference_accuracy/ties": 0.5,
        }
        for s in range(3)
    ]
    write_lines(run / "metrics.jsonl", lines)
    shown = rendered(run)
    assert shown.plots() == ["skills", "eval-preference_accuracy", "eval-perplexity", "snr"]
    assert "Held-out: perplexity" in shown.text and "Preference accuracy, right" in shown.text


def test_not_a_directory_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        page.write(tmp_path / "nowhere")


def test_selection_is_the_best_of_each_type_and_layer_1_is_not_layer_11(tmp_path):
    run = write_run(tmp_path / "run", steps=0, layers=12)
    (run / "unfrozen.yaml").write_text("unfrozen_parameters:\n- ^model\\.layers\\.1\\.mlp\\.down_proj\\.weight$\n")
    assert selected_modules(read(run)) == {"model.layers.1.mlp.down_proj"}
    (run / "unfrozen.yaml").write_text("unfrozen_parameters:\n- '^.*$'\n")
    assert len(selected_modules(read(run))) == 12 * len(TYPES)


def test_shares_become_percent_and_categories_get_no_tile(html, tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": s, "eval/preference_accuracy": 0.5 + s / 4} for s in (0, 1)])
    shares = page.write(tmp_path).read_text()
    assert tile(shares, "eval/preference_accuracy") == [50.0, 75.0, 25.0]
    assert 'data-key="eval/function_calling"' in html
    assert 'data-key="eval/function_calling_simple"' not in html


def test_samples_are_paired_by_prompt_in_order():
    rows = [
        {"step": 0, "prompt": "a", "response": "a0"},
        {"step": 0, "prompt": "b", "response": "b0"},
        {"step": 0, "prompt": "b", "response": "b0 again"},
        {"step": 9, "prompt": "b", "response": "b9"},
        {"step": 9, "prompt": "c", "response": "c9"},
    ]
    pairs = [tuple(s and s["response"] for s in both) for both in pair(rows, 0, 9)]
    assert pairs == [("a0", None), ("b0", "b9"), ("b0 again", None), (None, "c9")]


def test_small_formats():
    assert [plain(x) for x in (0.5, -1.237, 12.34, 1234.5, 3e-5, 0.0, 1234)] == [
        "0.500", "−1.24", "12.3", "1,234", "3.00e−05", "0.000", "1,234",
    ]  # fmt: skip
    assert [duration(s) for s in (41.6, 187.4, 7620)] == ["42 s", "3 min 7 s", "2 h 7 min"]
    assert ranges({7, 1, 2, 3, 11}) == "1–3, 7, 11"


# A frame with `srcdoc` shares its parent's origin, so the parent can measure the page.
MEASURE = """<!DOCTYPE html>
<body><iframe style="width:400px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const view = document.querySelector("iframe").contentDocument.documentElement;
  view.querySelectorAll("details").forEach((part) => (part.open = true));
  document.body.textContent = `inner=${{view.clientWidth}} content=${{view.scrollWidth}}`;
}};
</script></body>"""


def chromium(tmp_path: Path, file: Path) -> subprocess.CompletedProcess:
    """The DOM after loading on stdout, the console on stderr."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    return subprocess.run([program, *flags.split(), profile, file.as_uri()], capture_output=True, text=True, timeout=60)


def test_chromium_shows_the_page_without_a_console_message(full_run, tmp_path):
    done = chromium(tmp_path, full_run / "report.html")
    assert done.stdout.count('class="cursor"') == done.stdout.count('class="chart"') == 16  # the script ran
    assert "CONSOLE" not in done.stderr


def test_chromium_at_phone_width_does_not_scroll_sideways(html, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=escape(html)), encoding="utf-8")
    done = chromium(tmp_path, frame)
    assert "inner=400 content=400" in done.stdout


# Moves over the first plot, then drags over the middle half of it, then clicks twice; tells what the page shows.
POINT = """<!DOCTYPE html>
<body><iframe style="width:1200px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const chart = page.querySelector("svg.chart"), area = chart.querySelector("svg.area");
  const frame = chart.getBoundingClientRect(), said = [];
  const at = (part) => ({{
    clientX: frame.left + frame.width * (44 + 340 * part) / 390, clientY: frame.top + 20, bubbles: true,
    pointerType: "mouse",
  }});
  const ticks = () => [...chart.querySelectorAll(".xticks text")].map((text) => text.textContent).join(",");
  chart.dispatchEvent(new view.PointerEvent("pointermove", at(0.5)));
  said.push(page.querySelector(".tip").textContent.replaceAll("\\n", "; "));
  chart.dispatchEvent(new view.PointerEvent("pointerdown", at(0.25)));
  chart.dispatchEvent(new view.PointerEvent("pointermove", at(0.75)));
  chart.dispatchEvent(new view.PointerEvent("pointerup", at(0.75)));
  const zoomed = [...page.querySelectorAll("svg.area")].map((one) => one.getAttribute("viewBox"));
  said.push(`zoomed=${{area.getAttribute("viewBox")}} ${{ticks()}} alike=${{new Set(zoomed).size}}`);
  chart.dispatchEvent(new view.MouseEvent("dblclick", at(0.5)));
  said.push(`back=${{area.getAttribute("viewBox")}} ${{ticks()}}`);
  document.body.textContent = said.join("|");
}};
</script></body>"""


def test_chromium_shows_values_under_the_pointer_and_zooms_all_plots_together(html, full_run, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(POINT.format(page=escape(html)), encoding="utf-8")
    value = next(json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()[20:])
    assert value["step"] == 20
    shown = chromium(tmp_path, frame).stdout
    (said,) = re.findall(r"step 20; training prompts: ([\d.]+); held-out prompts: ([\d.]+)\|", shown)
    values = [value["reward/score_mean"], value["eval/score_mean"]]
    assert [float(number) for number in said] == pytest.approx(values, rel=1e-3)
    assert "|zoomed=85 0 170 104 10,15,20,25,30 alike=1|back=0 0 340 104 0,10,20,30,40" in shown
