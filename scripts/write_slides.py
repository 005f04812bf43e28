"""Write the workshop's slides with the figures of a finished run: `make slides`.

The slides are one HTML file, which any browser opens and prints without network. `docs/slides.md` has their
text, with `---` between two slides. `![alt text](fig-diag-steps)` shows a figure of the executed notebooks by
its name, `![alt text](book/_static/flow.svg)` a file of the project.
"""

import argparse
import base64
import mimetypes
import sys
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt

from defaug_utils.book.plan import plan_book
from defaug_utils.book.profiles import read_profile
from defaug_utils.core.files import write_atomically
from defaug_utils.core.guards import raise_problems

TEXT = Path("docs/slides.md")
BREAK = "\n---\n"
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
html {{ scroll-snap-type: y mandatory; font: min(2.4vw, 4.2vh)/1.35 sans-serif }}
body {{ margin: 0; color: #222; background: #fff }}
h1 {{ font-size: 1.7em; margin: 0 0 0.4em }} p, ul, ol {{ margin: 0.4em 0 }}
section {{ box-sizing: border-box; height: 100vh; padding: 3vh 5vw; scroll-snap-align: start;
  overflow: hidden; display: flex; flex-direction: column; justify-content: center }}
p:has(img) {{ flex: 1 1 0; min-height: 0; text-align: center }}
img {{ max-width: 100%; max-height: 100%; object-fit: contain }}
@media (max-width: 700px) {{
  html {{ font-size: 16px }} section {{ height: auto; min-height: 100vh }} p:has(img) {{ flex: none }}
}}
@page {{ size: 297mm 167mm; margin: 0 }} @media print {{ section {{ break-after: page }} }}
</style>
</head>
<body>
{slides}
<script>
addEventListener("keydown", (event) => {{
  const step = {{ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1}}[event.key];
  if (!step) return;
  event.preventDefault();
  const place = Math.round(scrollY / innerHeight) + step, all = document.querySelectorAll("section");
  all[Math.min(Math.max(place, 0), all.length - 1)].scrollIntoView();
}});
</script>
</body>
</html>
"""


def main() -> None:
    """Write `slides.html` in the run's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="a name in profiles/")
    parser.add_argument("--data", default="", help="folder of your own data set")
    given = parser.parse_args()
    run = Path("runs", given.profile + (f"-{Path(given.data).resolve().name}" if given.data else ""))
    try:
        chapters = plan_book(read_profile(f"profiles/{given.profile}.yaml")).chapters.values()
        figures = dict(list_figures(run / "notebooks" / f"{name}.ipynb" for name in chapters))
        page = write_page(TEXT.read_text(encoding="utf-8"), figures)
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}\nMake the book first: make book PROFILE={given.profile}\n")
    with write_atomically(run / "slides.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"The slides are ready: open {run / 'slides.html'} in a browser; the arrow keys turn them.")


def list_figures(notebooks: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Name and data URI of every figure of the executed notebooks that are there."""
    for path in filter(Path.is_file, notebooks):
        for cell in nbformat.read(path, as_version=4).cells:
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            pictures = [
                output.data["image/png"]
                for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})
            ]
            if name and pictures:
                yield name, f"data:image/png;base64,{''.join(pictures[-1].split())}"


def write_page(text: str, figures: dict[str, str]) -> str:
    """The page of some slides; a ValueError lists every figure or file that is missing."""
    markdown, problems, slides = MarkdownIt("commonmark", {"html": False}), [], []
    for slide in text.split(BREAK):
        tokens = markdown.parse(slide)
        for token in (child for parent in tokens for child in parent.children or []):
            if token.type == "image":
                token.attrs["src"] = find_picture(token.attrs["src"], figures, problems)
        slides.append(f"<section>\n{markdown.renderer.render(tokens, markdown.options, {})}</section>")
    raise_problems("slides", problems)
    title = text.strip().splitlines()[0].lstrip("# ")
    return PAGE.format(title=escape(title), slides="\n".join(slides))


def find_picture(name: str, figures: dict[str, str], problems: list[str]) -> str:
    """The data URI of a figure or of a file of the project."""
    if name in figures:
        return figures[name]
    if not Path(name).is_file():
        problems.append(f"there is no figure or file {name!r}")
        return ""
    kind, _ = mimetypes.guess_type(name)
    return f"data:{kind};base64,{base64.b64encode(Path(name).read_bytes()).decode('ascii')}"


if __name__ == "__main__":
    main()
