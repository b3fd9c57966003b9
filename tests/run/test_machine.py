"""What is told of a CPU's types, and of what is installed."""

from starling_train.run.machine import dtype_note, has_fast_bfloat16, is_installed, memory_bytes


def test_bfloat16_is_offered_where_it_is_faster(tmp_path):
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    fast.write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n")
    slow.write_text("processor\t: 0\nflags\t\t: fpu avx512f sse\n")
    assert has_fast_bfloat16(fast) and not has_fast_bfloat16(slow) and not has_fast_bfloat16(tmp_path / "none")
    assert "model.dtype=bfloat16" in dtype_note("float32", 10**8, "cpu", fast)
    for case in (
        ("bfloat16", 10**8, "cpu", fast), ("float32", 10**6, "cpu", fast), ("float32", 10**8, "cuda", fast),
        ("float32", 10**8, "cpu", slow),
    ):  # fmt: skip
        assert dtype_note(*case) == ""


def test_memory_is_that_of_the_machine():
    assert 10**8 < memory_bytes() < 10**14


def test_a_folder_of_a_packages_name_is_not_installed(tmp_path, monkeypatch):
    """As a checkout of lm_eval beside the run is: without `__init__.py` Python takes it for a package."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_checkout").mkdir()
    assert is_installed("json")
    assert not is_installed("a_checkout") and not is_installed("nowhere_to_be_found")
