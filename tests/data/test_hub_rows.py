"""Data sets of the hub, as `datasets` downloads them: a hub on loopback; what it refuses is one line."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN, Hub, Repository

from starling_train.config.fields import UserError
from starling_train.data.rows import hub_rows
from starling_train.data.rows.table import Table


def table(word: str, count: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": [f"{word} {index}" for index in range(count)], "other": [0] * count}), file)
    return file.getvalue()


SPLITS = {f"data/{name}-00000-of-00001.parquet": table(name, 2) for name in ("train", "test")}
CONFIGS = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
NAMES = {
    "two": SPLITS | {"README.md": b"# Two"},
    "bare": SPLITS,
    "script": {"script.py": b"print()", "train.jsonl": b'{"prompt": "a"}\n'},
    "none": {"README.md": b"x"},
    "damaged": {"data/train-00000-of-00001.parquet": b"PAR1 cut"},
    "configs": {"README.md": CONFIGS, "a.jsonl": b'{"prompt": "a"}\n', "b.jsonl": b'{"prompt": "b"}\n'},
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub({f"datasets/org/{name}": Repository(dict(files)) for name, files in NAMES.items()}) as hub:
        hub.use(monkeypatch, tmp_path)
        yield hub


def read(name: str, subset: str | None = None, split: str = "train") -> list[tuple[str, dict]]:
    names, rows = hub_rows.read(f"org/{name}", subset, split, ["prompt"], "data")
    assert "prompt" in names
    return list(rows)


def refused(name: str, **settings) -> str:
    with pytest.raises(UserError) as error:
        read(name, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["two", "bare"])
def test_a_split_is_read(hub, name):
    assert read(name, split="test") == [(f"org/{name}, row {n + 1}", {"prompt": f"test {n}"}) for n in range(2)]
    line = refused(name, split="nonesuch")
    assert line.startswith(f"data.split: org/{name} has no split 'nonesuch'; use one of: ") and "test" in line


@pytest.mark.parametrize(("rows", "numbers"), [("", [0, 1]), ("[:1]", [0]), ("[1:]", [1]), ("[0:9]", [0, 1])])
def test_rows_of_a_split_are_cut_out_as_datasets_does_on_the_hub_and_here(hub, tmp_path, rows, numbers):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "train {number}"}}\n' for number in range(2)))
    (tmp_path / "data").mkdir()
    for number in range(2):  # of several files
        part = pa.table({"prompt": [f"train {number}"]})
        pq.write_table(part, tmp_path / "data" / f"train-0000{number}-of-00002.parquet")
    for path in ("org/two", tmp_path / "rows.jsonl", tmp_path):
        table = Table(path, ["prompt"], split=f"train{rows}")
        assert [row["prompt"] for _, row in table] == [f"train {number}" for number in numbers]
    for odd in ("train[-1:]", "train[10%:]", "train[:1]+train[1:]", "train[:99999999999999999999]"):
        with pytest.raises(UserError, match=r"^data.split: 'train.* rows of files are counted from the start"):
            Table(tmp_path, ["prompt"], split=odd)
        assert [row["prompt"] for _, row in Table("org/two", ["prompt"], split=odd)]  # `datasets` reads them all
    assert "has no split 'nonesuch[:1]'" in refused("two", split="nonesuch[:1]")


def test_one_of_several_subsets_is_read(hub):
    assert read("configs", subset="b") == [("org/configs, row 1", {"prompt": "b"})]
    assert "data.subset: org/configs: Config name is missing" in refused("configs") and "['a', 'b']" in refused(
        "configs"
    )
    assert "data.subset: org/configs: BuilderConfig 'c' not found. Available: ['a', 'b']; name" in (
        refused("configs", subset="c")
    )


def test_scripts_and_data_sets_without_data(hub):
    assert refused("script").startswith("org/script: a script, which is not run here (Dataset scripts are no longer")
    assert refused("script").endswith("give its files as parquet or JSON")
    assert refused("none") == (
        "data.path: 'org/none' has no data files on the hub that are read (.parquet, .jsonl, .json, .csv)"
    )
    assert refused("damaged").startswith("org/damaged: not readable (Parquet magic bytes not found in footer")


def test_gated_private_and_missing_ones(hub, monkeypatch):
    page = f"{hub.url}/datasets/org"
    repository = hub.repositories["datasets/org/two"]
    missing = f"is neither a local directory nor on the hub ({page}/nobody); check the name, or, if it is private, set"
    assert refused("nobody").startswith(f"data.path: 'org/nobody' {missing} HF_TOKEN")
    repository.gated = True
    assert refused("two").startswith(
        f"data.path: 'org/two' is gated on the hub: accept its licence at {page}/two, and "
    )
    repository.hidden = True
    assert f"nor on the hub ({page}/two); check the name, or, if it is private, set HF_TOKEN" in refused("two")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(read("two")) == 2


def test_offline_is_named_where_it_is_the_cause(hub, monkeypatch):
    import datasets.config
    from huggingface_hub import constants

    rows = read("two")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    assert read("two") == rows  # from the cache
    end = "keeps it from being downloaded; unset"
    line = refused("bare")
    assert line.startswith(
        "data.path: 'org/bare' is neither a local directory nor in this machine's hub cache, and HF_D"
    )
    assert f"HF_DATASETS_OFFLINE {end} HF_DATASETS_OFFLINE" in line
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"HF_HUB_OFFLINE {end} HF_HUB_OFFLINE" in refused("bare")


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its five attempts
    hub.broken = 503
    assert "hub cache, and the hub does not answer (" in refused("two")
