"""A sitemap and cards for links, if the book knows its address; nothing otherwise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from address import LONGEST
from test_house import ROOT

TREE = "\n\n```{toctree}\nfurther/next\n```\n"
PAGES = {
    "index": "# Main & \\<b>\n\nA page on *defects* " + "and so on " * 40 + TREE,
    "further/next": "# Next\n",
}


@pytest.mark.parametrize("address", ["", "https://book.example/defaug"])
def test_a_published_book_has_a_sitemap_and_cards(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, text in PAGES.items():
        (tmp_path / f"{name}.md").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.md").write_text(text)
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'address']\nproject = 'Book'\n"
    )
    monkeypatch.setenv("BOOK_URL", address)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", tmp_path, tmp_path / "html"]
    subprocess.run(command, check=True)
    page = (tmp_path / "html" / "index.html").read_text()
    tags = dict(re.findall(r'<meta property="(og:\w+)" content="([^"]*)" />', page))
    sitemap = tmp_path / "html" / "sitemap.xml"
    if not address:
        assert not tags and not sitemap.exists()
        return
    found = re.findall("<loc>(.*?)</loc>", sitemap.read_text())
    assert found == [f"{address}/{name}.html" for name in ("further/next", "index")]
    assert tags["og:url"] == f"{address}/index.html" and tags["og:image"] == f"{address}/_static/front.png"
    assert tags["og:title"] == "Main &amp; &lt;b&gt;"
    assert tags["og:description"].startswith("A page on defects and so on")
    assert len(tags["og:description"]) <= LONGEST + 2
    assert (ROOT / "book" / "_static" / "front.png").is_file()
