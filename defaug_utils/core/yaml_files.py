"""Reading YAML written by users: plain values only, no duplicate keys, no exploding anchors."""

from pathlib import Path

import yaml

MAX_VALUES = 100_000  # per file, counting every use of an anchor


def read_yaml(path: Path | str, what: str, error: type[Exception] = ValueError) -> object:
    """The plain values of a YAML file, None if it is empty; `error` names the file and the problem.

    Besides invalid YAML it refuses tags that would create objects, duplicate keys in one mapping (YAML would
    silently drop the first value), and anchors that would expand without limit.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # ValueError: an invalid date
        raise error(f"{what} {path} is not valid YAML: {problem}") from problem


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Number of values that a node expands to; raises a ValueError for too many or for duplicate keys."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES  # for a node inside itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(value,) for value in node.value]
        keys = [key.value for key, *values in pairs if values and isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            line = node.start_mark.line + 1
            raise ValueError(f"{', '.join(map(repr, repeated))} occurs twice in the mapping of line {line}")
        counts[id(node)] = 1 + sum(_count_values(part, counts) for pair in pairs for part in pair)
    if counts[id(node)] > MAX_VALUES:
        raise ValueError(f"its anchors (&, *) expand to more than {MAX_VALUES:,} values")
    return counts[id(node)]
