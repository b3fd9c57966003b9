"""How fast a GPU computes in float64, which the SNR scan needs: cards made for graphics are 32 or 64 times slower."""

# float64 results a clock and multiprocessor over float32 ones, by compute capability. Source: CUDA C++ Programming
# Guide, section 'Arithmetic Instructions', table of throughputs.
SHARES = {
    (5, 0): 1 / 32, (5, 2): 1 / 32, (6, 0): 1 / 2, (6, 1): 1 / 32, (7, 0): 1 / 2, (7, 5): 1 / 32, (8, 0): 1 / 2,
    (8, 6): 1 / 64, (8, 9): 1 / 64, (9, 0): 1 / 2, (10, 0): 1 / 2, (12, 0): 1 / 64, (12, 1): 1 / 64,
}  # fmt: skip


def scan_note(name: str, capability: tuple[int, int]) -> str:
    """Return what a scan on such a GPU costs, in one line; '' where float64 is fast, or its rate is unknown.

    name: the GPU's. capability: its compute capability, e.g. (8, 9).
    """
    share = SHARES.get(capability, 1.0)
    if share > 1 / 8:
        return ""
    return (
        f"{name} computes float64 at 1/{round(1 / share)} of its float32 rate, and an SNR scan needs float64: the "
        "command snr with cluster.device=cpu may be faster (about 11 minutes for a 7B model on two cores), and "
        "freeze.scan= takes its result; a scan goes on where it was stopped"
    )
