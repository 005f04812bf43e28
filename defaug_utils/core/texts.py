"""Text from data or users, shown literally: no markup, no formula, no script."""

import re

_MARKDOWN = re.compile(r"""[!"#$()*+:<=>@\[\\\]^_`{|}~]|^[-%]|\.(?=\s|$)|&(?=#?\w+;)""")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escape_markdown(text: object) -> str:
    """Escape text for any Markdown (CommonMark, MyST, JupyterLab's), on one line.

    Characters that could be markup become character references. Those that could start a formula get their
    own span, because JupyterLab's MathJax searches the finished page for formulas.
    """
    return _MARKDOWN.sub(_refer, " ".join(str(text).split()))


def _refer(found: re.Match) -> str:
    reference = f"&#{ord(found[0])};"
    return f"<span>{reference}</span>" if found[0] in "$\\" else reference


def escape_mathtext(text: object) -> str:
    """Escape text for a figure, so that matplotlib shows dollar signs instead of formulas."""
    return str(text).replace("$", r"\$")


def guard_cell(text: str) -> str:
    """Protect a CSV cell that a spreadsheet would read as a formula: `=1+1` gets a leading apostrophe."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_cell(text: str) -> str:
    """Undo `guard_cell`."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text
