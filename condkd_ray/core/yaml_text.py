"""Safe loading of untrusted YAML: every fault of a text raises `yaml.YAMLError`, and expansion by aliases is limited.

PyYAML alone raises various other errors for invalid values (`2001-02-30`, `!!bool x`, a number of 5000 digits), keeps
the last of duplicate keys, and builds values that contain themselves or that nested aliases expand beyond any memory.
"""

from collections.abc import Callable
from typing import Any

import yaml

from condkd_ray.core.method import InputError

MAX_DEPTH = 50
"""Maximum nesting depth of mappings and lists."""
LARGEST = 1_000_000
"""Maximum number of characters and values after expansion of aliases, for texts of up to a tenth of it."""


def load_yaml(text: str, kind: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of the single document in a text; None if it is empty.

    Raises `yaml.YAMLError` for any fault of the text. An `InputError` raised by a constructor of `kind` is passed on.
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
    except Exception as error:  # any other error of PyYAML is caused by the text
        raise yaml.YAMLError(f"a value is not valid for its type ({error})") from None


_TOO_DEEP = f"its mappings and lists are nested more than {MAX_DEPTH} deep"


def _check_size(root: yaml.Node, most: int, made: Callable[[yaml.Node], Any]) -> None:
    """Raise `yaml.YAMLError` if nodes are nested too deeply or contain themselves, are too many, or have equal keys."""
    known: dict[yaml.Node, tuple[int, int]] = {}

    def measured(node: yaml.Node, around: int) -> tuple[int, int]:
        """Return the size and the height of a node; `around` is the number of nodes around it."""
        if node not in known:
            # A node that contains itself is not in `known` yet when it is reached again.
            if around > MAX_DEPTH:
                raise yaml.YAMLError(_TOO_DEEP)
            below = [measured(one, around + 1) for one in _inside(node, made)]
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            known[node] = 1 + own + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
        size, height = known[node]
        if around + height > MAX_DEPTH + 1:
            raise yaml.YAMLError(_TOO_DEEP)
        if size > most:
            raise yaml.YAMLError(f"its aliases expand to {size} values and characters, more than {most}")
        return size, height

    measured(root, 0)


def _inside(node: yaml.Node, made: Callable[[yaml.Node], Any]) -> list[yaml.Node]:
    """Return the child nodes: items, or keys and values. Raises `yaml.YAMLError` if two keys have equal values."""
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    lines: dict[Any, int] = {}
    # The merge key may occur several times.
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
        line, name = key.start_mark.line + 1, made(key)
        if name in lines:
            raise yaml.YAMLError(f"the key {key.value!r} occurs twice, in lines {lines[name]} and {line}")
        lines[name] = line
    return [one for pair in node.value for one in pair]
