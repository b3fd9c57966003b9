"""A whole page: one file, in the style that all pages have, with one small script and nothing from elsewhere."""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from string import Template

from starling_train.files.whole import write_text
from starling_train.report.markup import contents, escape


def document(
    name: str, title: str, body: str, *, status: str = "", headline: str = "", verdict: str = "", facts: str = ""
) -> str:
    """Return a whole page.

    name: its heading, plain text.
    title: what kind of page it is, for the browser.
    body: HTML, of sections.
    status: whether the run is finished, HTML.
    headline: the run in a sentence, HTML.
    verdict: in one line, HTML.
    facts: more about it, HTML.
    """
    files = resources.files("starling_train.report")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Only this very script runs, whatever stands in answers and names
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        name=escape(name),
        title=title,
        policy=policy,
        status=status,
        headline=headline,
        verdict=verdict,
        facts=facts,
        contents=contents(body),
        body=body,
        script=script,
    )


def save(directory: Path, text: str) -> Path:
    """Write a page as a directory's `report.html`, whole or not at all, and return its path."""
    return write_text(directory / "report.html", text)
