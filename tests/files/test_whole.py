"""Files and folders are there whole or not at all, and nothing half written stays."""

import pytest

from starling_train.files import whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["file", "folder"])
def write(request):
    """Writes a text to a path, as a file or as a file in a folder."""

    def one(path, text):
        if request.param == "folder":
            (path / "within").mkdir(parents=True)
            path = path / "within" / "file"
        path.write_text(text)

    def content(path):
        return (path / "within" / "file" if request.param == "folder" else path).read_text()

    one.content = content
    return one


@pytest.mark.parametrize("shared", [False, True])
def test_written_and_replaced(tmp_path, write, shared):
    path = tmp_path / "x"
    assert whole.write_whole(path, lambda to: write(to, "1"), shared) == path and write.content(path) == "1"
    whole.write_whole(path, lambda to: write(to, "2"), shared)
    assert write.content(path) == ("1" if shared and path.is_dir() else "2")
    assert names(tmp_path) == ["x"]


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path, write):
    path = tmp_path / "x"
    whole.write_whole(path, lambda to: write(to, "1"))

    def fail(to):
        write(to, "2")
        raise SystemExit(143)  # a signal

    with pytest.raises(SystemExit):
        whole.write_whole(path, fail)
    assert write.content(path) == "1" and names(tmp_path) == ["x"]


def test_what_a_kill_left_goes_with_the_next_write(tmp_path, write):
    write(tmp_path / ".x.partial", "half written")
    write(tmp_path / ".x.old", "half deleted")
    whole.write_whole(tmp_path / "x", lambda to: write(to, "1"))
    assert names(tmp_path) == ["x"]


def test_links_are_replaced_and_not_followed(tmp_path, write):
    write(tmp_path / "other", "theirs")
    (tmp_path / "x").symlink_to(tmp_path / "other")
    whole.write_whole(tmp_path / "x", lambda to: write(to, "1"))
    assert write.content(tmp_path / "other") == "theirs" and write.content(tmp_path / "x") == "1"
    assert names(tmp_path) == ["other", "x"]


def test_text_that_utf8_cannot_carry(tmp_path):
    assert whole.write_text(tmp_path / "x", "é\ud800").read_bytes() == "é?".encode()


def test_removed(tmp_path, write):
    write(tmp_path / "x", "1")
    whole.remove(tmp_path / "x")
    assert names(tmp_path) == []
