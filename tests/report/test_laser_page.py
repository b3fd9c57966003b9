import json
import re

from starling_train.report import laser_page

TRY = {
    "step": 1, "module": "model.layers.0.mlp.up_proj", "raw_snr": 0.5, "rank_before": 8, "rank": 3,
    "measure": "perplexity", "before": 2.0, "after": 1.5, "accepted": True, "seconds": 0.25,
}  # fmt: skip


def write(run, rows, **summary) -> str:
    (run / "tries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text("name: mine\nmodel:\n  path: some/model\n")
    if summary:
        (run / "summary.json").write_text(json.dumps({"name": "mine", "measure": "perplexity"} | summary))
    return laser_page.write(run).read_text()


def test_every_try_is_a_line_with_its_numbers(tmp_path):
    part = {"count": 4, "before": 2.0, "after": 1.5}
    rows = [TRY, TRY | {"step": 2, "module": "model.layers.1.mlp.up_proj", "after": None, "accepted": False}]
    page = write(tmp_path, rows, finished=True, judging=part, held_out=part, unit="windows", parameters=100,
                 parameters_saved_by_factors=7)  # fmt: skip
    assert "Finished, 1 of 2 tries kept" in page
    assert re.findall(r"<code>(layers.*?)</code>", page) == ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"]
    assert page.count(">kept</span></td>") == page.count(">restored</span></td>") == 1 and "not measured" in page
    assert page.count('class="chart"') == 1 and page.count('class="tile"') == 4
    assert laser_page.write(tmp_path).read_text() == page


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    page = write(tmp_path, [])
    assert "Not finished, 0 of 0 tries kept" in page and "No try was recorded" in page and "some/model" in page


def test_what_comes_from_files_cannot_become_html(tmp_path):
    page = write(tmp_path, [TRY | {"module": "<script>x</script>", "measure": "<b>"}], measure="<i>")
    assert page.count("<script>") == 1 and "<b>" not in page and "<i>" not in page
