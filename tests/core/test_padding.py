import pytest

from starling_train.core.padding import padded


@pytest.mark.parametrize(
    "side,ids,real",
    [
        ("right", [[1, 2], [3, 9]], [[True, True], [True, False]]),
        ("left", [[1, 2], [9, 3]], [[True, True], [False, True]]),
    ],
)
def test_padding_by_hand(side, ids, real):
    got, is_real = padded([[1, 2], [3]], 9, side)
    assert got.tolist() == ids and is_real.tolist() == real
