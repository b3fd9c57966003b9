"""How two texts begin."""


def shared_beginning(first: str, second: str) -> str:
    """Return the longest text that both begin with."""
    shorter = min(len(first), len(second))
    return first[: next((i for i in range(shorter) if first[i] != second[i]), shorter)]
