"""What is told of a CPU's types."""

from starling_train.run.machine import dtype_note, has_fast_bfloat16, memory_bytes


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
