"""Reading YAML that people write: plain values only, no key twice, nothing that explodes."""

from pathlib import Path

import yaml

MAX_VALUES = 100_000  # of a file, every use of an anchor counted


def read_yaml(path: Path | str, what: str, error: type[Exception] = ValueError) -> object:
    """The plain values of a YAML file, None where it is empty; `error` names the file and what is wrong.

    Beside what YAML itself forbids, refused are tags that would make objects, a key that stands twice in one
    mapping (YAML would drop the first value silently), and anchors whose use makes a file endless.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # ValueError: a date that is none
        raise error(f"{what} {path} is not valid YAML: {problem}") from problem


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for; a ValueError where there are too many or a key stands twice."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES  # of a node inside itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(value,) for value in node.value]
        keys = [key.value for key, *values in pairs if values and isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            line = node.start_mark.line + 1
            raise ValueError(f"{', '.join(map(repr, repeated))} stands twice in the mapping of line {line}")
        counts[id(node)] = 1 + sum(_count_values(part, counts) for pair in pairs for part in pair)
    if counts[id(node)] > MAX_VALUES:
        raise ValueError(f"its anchors (&, *) stand for more than {MAX_VALUES:,} values")
    return counts[id(node)]
