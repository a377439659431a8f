"""YAML as anybody may write it: whatever is wrong with a text is an error of YAML's, and none is larger than it looks.

PyYAML raises errors of many kinds for values that are none (`2001-02-30`, `!!bool x`, a number of 5000 digits), takes
the last of equal keys, and builds what contains itself, or by aliases of aliases more than any memory holds.
"""

from collections.abc import Callable
from typing import Any

import yaml

from condkd_ray.core.method import InputError

DEEPEST = 50
"""Mappings and lists within one another, at most."""
LARGEST = 1_000_000
"""Characters and values that aliases may make of a text that is not itself long."""


def load_yaml(text: str, kind: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What the one document of a text says; None for an empty one.

    Raises `yaml.YAMLError` for all that is wrong with it, and an `InputError` that a constructor of `kind` raises.
    """
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, max(LARGEST, 10 * len(text)), loader.construct_object)
        return loader.construct_document(node)
    except (yaml.YAMLError, InputError):
        raise
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    except Exception as error:  # whatever a stranger's text makes PyYAML raise is the text's fault
        raise yaml.YAMLError(f"a value is none of its kind ({error})") from None


_TOO_DEEP = f"its mappings and lists lie more than {DEEPEST} deep in one another"


def _check_size(root: yaml.Node, most: int, made: Callable[[yaml.Node], Any]) -> None:
    """Raise `yaml.YAMLError` for nodes too deep in one another, as within themselves, too many, or of equal keys."""
    known: dict[yaml.Node, tuple[int, int]] = {}

    def measured(node: yaml.Node, around: int) -> tuple[int, int]:
        """Size and height."""
        if node not in known:
            # What contains itself has not been measured when it is met again.
            if around > DEEPEST:
                raise yaml.YAMLError(_TOO_DEEP)
            below = [measured(one, around + 1) for one in _inside(node, made)]
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            known[node] = 1 + own + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
        size, height = known[node]
        if around + height > DEEPEST + 1:
            raise yaml.YAMLError(_TOO_DEEP)
        if size > most:
            raise yaml.YAMLError(f"its aliases make {size} values and characters of it, more than {most}")
        return size, height

    measured(root, 0)


def _inside(node: yaml.Node, made: Callable[[yaml.Node], Any]) -> list[yaml.Node]:
    """What a node holds: items, or keys and values. Raises `yaml.YAMLError` where two keys are `made` the same."""
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    lines: dict[Any, int] = {}
    # Several merges are usual.
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
        line, name = key.start_mark.line + 1, made(key)
        if name in lines:
            raise yaml.YAMLError(f"the key {key.value!r} stands twice, in lines {lines[name]} and {line}")
        lines[name] = line
    return [one for pair in node.value for one in pair]
