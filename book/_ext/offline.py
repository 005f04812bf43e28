"""Make the book readable offline: formulas are MathML, and no page loads scripts from the network."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def to_mathml(node: nodes.Element, is_block: bool) -> str:
    """Convert a formula's LaTeX to MathML; if this fails, warn with its location."""
    try:
        return tex2mathml(node.astext(), as_block=is_block)
    except (SyntaxError, ValueError) as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        return nodes.unescape(node.astext())


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write an inline formula."""
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate"))
    self.body.append(to_mathml(node, is_block=False) + "</span>")
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number, if it has one."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(to_mathml(node, is_block=True) + "</div>\n")
    raise nodes.SkipNode


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Omit the scripts of Thebe, which is switched off: loaded twice, they cause an error."""
    kept = [one for one in context["script_files"] if "thebe" not in f"{one.filename} {one.attributes}"]
    context["script_files"] = kept


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer `mathml`, and omit scripts."""
    app.connect("html-page-context", drop_thebe, priority=900)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
