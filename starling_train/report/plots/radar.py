"""A radar plot: an axis for each category, a closed curve for each result."""

import math

from starling_train.report.markup import escape
from starling_train.report.plots.panel import BLUE, GREEN, ORANGE, PURPLE, RED

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
HIGHEST = 10.0
MIDDLE, RADIUS = (195.0, 150.0), 105.0


def radar_svg(curves: dict[str, dict[str, float]]) -> str:
    """Draw curves (label -> category -> rating from 0 to 10) as HTML; empty with fewer than three categories.

    A curve's line passes over categories that it lacks.
    """
    categories = list(dict.fromkeys(name for curve in curves.values() for name in curve))
    if len(categories) < 3:
        return ""
    turns = {name: index / len(categories) for index, name in enumerate(categories)}
    parts = []
    for level in (2.0, 4.0, 6.0, 8.0, 10.0):
        ring = "L".join(_place(turn, level) for turn in turns.values())
        parts.append(f'<path class="grid" d="M{ring}Z"/>')
        up = MIDDLE[1] - RADIUS * level / HIGHEST
        parts.append(f'<text class="ytick" x="{MIDDLE[0] - 3:.1f}" y="{up + 3:.1f}">{level:g}</text>')
    for name, turn in turns.items():
        parts.append(f'<path class="grid" d="M{_place(turn, 0.0)}L{_place(turn, HIGHEST)}"/>')
        x, y = (float(part) for part in _place(turn, HIGHEST * 1.12).split())
        side = "middle" if abs(x - MIDDLE[0]) < 5 else "start" if x > MIDDLE[0] else "end"
        parts.append(f'<text style="text-anchor: {side}" x="{x:.1f}" y="{y + 3:.1f}">{escape(name)}</text>')
    keys = []
    for index, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [_place(turns[name], curve[name]) for name in categories if name in curve]
        parts.append(f'<path class="curve {colour}" d="M{"L".join(places)}Z"/>')
        parts.append(f'<path class="dots large {colour}" d="{"".join(f"M{place}h0" for place in places)}"/>')
        keys.append(f'<span class="key {colour}">{escape(label)}</span>')
    return (
        f'<p class="legend"><strong>rating</strong> {" ".join(keys)}</p>'
        '<svg class="radar" viewBox="0 0 390 290" role="img" aria-label="MT-Bench by category">'
        f"{''.join(parts)}</svg>"
    )


def _place(turn: float, rating: float) -> str:
    """Return where a rating lies on the axis at a part of a whole turn, clockwise from the top."""
    angle, radius = 2 * math.pi * turn, RADIUS * rating / HIGHEST
    return f"{MIDDLE[0] + radius * math.sin(angle):.1f} {MIDDLE[1] - radius * math.cos(angle):.1f}"
