"""Small pieces of HTML and Markdown. Everything that comes from a file or a model passes through `escape`."""

import html
import re
from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"
NOT_MEASURED = "not measured"


def clean(value: object) -> str:
    """Return text without the characters that JSON can carry but a page cannot.

    Control characters other than tab and newline, and half surrogate pairs, become the replacement character.
    """
    text = str(value).replace("\r\n", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def escape(value: object) -> str:
    """Clean text and make it safe for HTML content and double-quoted attributes."""
    return html.escape(clean(value))


def plain(value: float, signed: bool = False) -> str:
    """Return a number for people: about three figures, thousands separated, a real minus sign."""
    size = abs(value)
    if isinstance(value, int):
        spec = ",d"
    elif size and (size < 1e-3 or size >= 1e7):
        spec = ".2e"
    else:
        spec = ",.0f" if size >= 1000 else ".1f" if size >= 10 else ".2f" if size >= 1 else ".3f"
    return format(value, ("+" if signed else "") + spec).replace("-", MINUS)


def percent(share: float) -> str:
    """Return a share as percent: `0 %`, `0.08 %`, `2.3 %`, `70 %`."""
    value = 100 * share
    size = abs(value)
    spec = ".0f" if size >= 10 or not size else ".1f" if size >= 1 else ".2g"
    return f"{value:{spec}} %".replace("-", MINUS)


def points(value: float, signed: bool = True) -> str:
    """Return percentage points with one decimal."""
    return f"{value + 0.0:{'+' if signed else ''}.1f}".replace("-", MINUS)


def number(value: object, unit: str = "", signed: bool = False) -> str:
    """Return a `<data>` element: rounded for the eye, exact in its `value`; other values become "not measured"."""
    if not isinstance(value, (int, float)):
        return f'<span class="none">{NOT_MEASURED}</span>'
    suffix = f'<span class="unit">&nbsp;{escape(unit)}</span>' if unit else ""
    return f'<data value="{value!r}">{plain(value, signed)}</data>{suffix}'


def duration(seconds: float) -> str:
    """Return seconds as `42 s`, `3 min 5 s` or `2 h 7 min`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(value: int) -> str:
    """Return a parameter count as `1.75 B`, `23.1 M`, `361,600`."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} B"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """Return a table of cells that are HTML already; columns in `numeric` are right-aligned."""

    def line(cells: Sequence[str], tag: str) -> str:
        tagged = [f"<{tag}{' class=num' if i in numeric else ''}>{c}</{tag}>" for i, c in enumerate(cells)]
        return "<tr>" + "".join(tagged) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead>\n<tbody>{body}</tbody></table></div>'


def details(title: str, body: str) -> str:
    """Return a part that is folded until the reader opens it; `body` is HTML."""
    return f"<details><summary>{escape(title)}</summary>\n{body}</details>"


def section(title: str, body: str) -> str:
    """Return a part of the page with its heading, which the contents can point to; `body` is HTML."""
    return f'<section id="{anchor(title)}">\n<h2>{title}</h2>\n{body}\n</section>\n'


def anchor(title: str) -> str:
    """Return a heading's name in addresses."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def contents(body: str) -> str:
    """Return links to the sections of a page; empty where there is only one."""
    titles = re.findall(r'<section id="[^"]*">\n<h2>([^<]*)</h2>', body)
    links = "".join(f'<a href="#{anchor(title)}">{title}</a>' for title in titles)
    return f'<nav class="contents" aria-label="Contents">{links}</nav>' if len(titles) > 1 else ""


def note(text: str) -> str:
    """Return a sentence in a quiet style; `text` is HTML."""
    return f'<p class="note">{text}</p>'


def badge(state: str, text: str) -> str:
    """Return a word on the colour of `good`, `watch` or `bad`; `text` is HTML."""
    return f'<span class="badge {state}">{text}</span>'


def card(drawing: str, reading: str = "", title: str = "", slug: str = "") -> str:
    """Return a figure with its title and how to read it.

    drawing: HTML.
    reading: HTML.
    title: its heading.
    slug: names a plot in the page.
    """
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    caption = f"<figcaption>{reading}</figcaption>" if reading else ""
    named = f' data-plot="{escape(slug)}"' if slug else ""
    return f'<figure class="card"{named}>{heading}{drawing}{caption}</figure>'


def tile(label: str, value: str, change: str = "", key: str = "") -> str:
    """Return one number in large type.

    label: what it is.
    value: HTML.
    change: a line below it, HTML.
    key: of the metric.
    """
    attribute = f' data-key="{escape(key)}"' if key else ""
    below = f'<p class="change">{change}</p>' if change else ""
    return f'<div class="tile"{attribute}><h3>{escape(label)}</h3><p class="value">{value}</p>{below}</div>'


def verbatim(text: str) -> str:
    """Return a file's text unchanged but for its secrets."""
    return f"<pre>{escape(redact(text))}</pre>"


def redact(text: str) -> str:
    """Remove secrets from a text: values of keys such as `token` or `api_key`, and passwords inside URLs."""
    secret = r"(?i)\b((?:[\w.]*[_.])?(?:token|password|secret|api_?key)[\"']?\s*[:=][ \t]*)(?!null\b|\s)\S+"
    return re.sub(r"(://)[^/\s@]+@", r"\1***@", re.sub(secret, r"\1***", text))


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table for Markdown files."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
