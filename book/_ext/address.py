"""A sitemap, and cards for links to a page, if the variable BOOK_URL tells the book's address."""

import os
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

PICTURE = "_static/front.png"
LONGEST = 200  # characters of a description


def find_address() -> str:
    """The address from BOOK_URL, ending in a slash, or an empty text."""
    address = os.environ.get("BOOK_URL", "").strip()
    return f"{address.rstrip('/')}/" if address else ""


def add_card(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None
) -> None:
    """Describe a page in Open Graph's words, which chats and social networks show for a link."""
    address = find_address()
    if not address or doctree is None:
        return
    first = next(iter(doctree.findall(nodes.paragraph)), None)
    words = " ".join(first.astext().split()) if first else app.config.project
    told = {
        "og:type": "article",
        "og:site_name": app.config.project,
        "og:title": app.env.titles[pagename].astext(),
        "og:description": words if len(words) <= LONGEST else f"{words[:LONGEST].rsplit(' ', 1)[0]} …",
        "og:url": f"{address}{pagename}.html",
        "og:image": address + PICTURE,
    }
    tags = [f'<meta property="{name}" content="{escape(value)}" />' for name, value in told.items()]
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])


def write_sitemap(app: Sphinx, error: Exception | None) -> None:
    """List every page's address."""
    address = find_address()
    if not address or error or app.builder.format != "html":
        return
    pages = [f"<url><loc>{escape(address + name)}.html</loc></url>" for name in sorted(app.env.found_docs)]
    lines = ['<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">', *pages, "</urlset>"]
    Path(app.outdir, "sitemap.xml").write_text(
        "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', *lines, ""]), "utf-8"
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Add both."""
    app.connect("html-page-context", add_card)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
