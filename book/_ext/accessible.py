"""Pages for keyboards and screen readers: repairs what Sphinx and its extensions write."""

import re

from sphinx.application import Sphinx

REPAIRS = {
    r'<section id="(?:exercise|solution)-content">': "<section>",  # one id for all exercises of a page
    r' aria-label="Toggle hidden content"': "",  # would be read in place of the words on the bar
    r' role="doc-biblioentry"': ' role="listitem"',  # deprecated, and its list has to hold items
    r"<th( [^>]*)?>(?:\s|&nbsp;|&#160;|<p></p>)*</th>": r"<td\1></td>",  # a head without words is no head
}


def repair(html: str) -> str:
    """The HTML of a page's text with every repair."""
    for found, repaired in REPAIRS.items():
        html = re.sub(found, repaired, html)
    return html


def repair_page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Repair a page's text before it is put into its template."""
    if "body" in context:
        context["body"] = repair(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Repair every page."""
    app.connect("html-page-context", repair_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
