"""Text that comes from data or a person, shown as it is: no markup, no formula, no script."""

import re

_MARKDOWN = re.compile(r"""[!"#$()*+:<=>@\[\\\]^_`{|}~]|^[-%]|\.(?=\s|$)|&(?=#?\w+;)""")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escape_markdown(text: object) -> str:
    """Text for a line of Markdown, of whatever kind (CommonMark, MyST, JupyterLab's), on one line.

    What could be markup becomes a character reference. A span of its own keeps what could begin a formula
    from JupyterLab's MathJax, which looks for formulas in the finished page.
    """
    return _MARKDOWN.sub(_refer, " ".join(str(text).split()))


def _refer(found: re.Match) -> str:
    reference = f"&#{ord(found[0])};"
    return f"<span>{reference}</span>" if found[0] in "$\\" else reference


def escape_mathtext(text: object) -> str:
    """Text for a figure: matplotlib shows its dollar signs and sets no formula."""
    return str(text).replace("$", r"\$")


def guard_cell(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: `=1+1` gets an apostrophe in front."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_cell(text: str) -> str:
    """What `guard_cell` was given."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text
