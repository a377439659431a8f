"""Random configs and spaces: default fields with other values, and trees that are no configs."""

import json
from typing import Any

import yaml
from hypothesis import strategies as st

from condkd_ray.core.config import flattened, to_tree
from condkd_ray.trial.config import TrialConfig

PATHS = sorted(flattened(to_tree(TrialConfig()), "."))
NAMES = ["fast", "deep_inversion", "cmi", "none", "mixed", "discriminator", "resnet", "lenet5", "random_real", "latest"]
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, -(2**63), 10**20, 0.5, 1e-30, -0.0, float("nan"), float("inf"), -float("inf")]),
    st.floats(-2, 2, width=16),
)
WORDS = st.one_of(
    st.sampled_from(NAMES), st.text(max_size=6), st.sampled_from(["off", "yes", "1e-3", "~", "../x", "\x00"])
)
SCALARS: Any = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["name", "weight", "width", "depth"]), SCALARS), below, max_size=3),
    ),
    max_leaves=4,
)
SOUND = [
    "inversion: {bn_weight: !log_uniform [0.1, 100]}",
    "guidance: {weight: !uniform [1, 10]}",
    "guidance: !choice [none, {name: discriminator}]",
    "distiller: {lr: !log_uniform [1e-3, 1]}",
    "seed: !int [0, 3]",
    "rounds: !choice [1, 2]",
]
BOMBS = [
    *(b"[" * 3000, b"- {a: " * 3000, b"&a [*a]", b"- &a {x: *a}", b"- {seed: 2001-02-30}", b"- {seed: !!int x}"),
    b"- {seed: " + b"1" * 5000 + b"}",
    b"- &a [x]\n" + b"".join(b"- &%c [%s]\n" % (98 + i, b", ".join([b"*%c" % (97 + i)] * 10)) for i in range(12)),
]
"""Invalid YAML, and YAML that expands to far more than its size."""
TAGS = st.sampled_from(["!uniform", "!log_uniform", "!int", "!choice", "!range", "!!python/object:os.system"])


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return a tree with one leaf."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the leaves of `over`."""
    both = dict(base)
    for key, value in over.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return both


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """A few fields of the default config, or unknown fields, with any values."""
    tree: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PATHS))
        if draw(st.integers(0, 4)) == 0:
            path = path.rpartition(".")[0] or "rounds"
        if draw(st.integers(0, 9)) == 0:
            path += draw(st.sampled_from(["s", ".x", "_"]))
        tree = merged(tree, nested(path, draw(VALUES)))
    return tree


def written(tree: Any) -> bytes:
    """Return a tree as YAML in UTF-8."""
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def torn(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that are sometimes cut off, or have other bytes inserted."""
    way = draw(st.integers(0, 7))
    place = draw(st.integers(0, max(len(whole) - 1, 0)))
    if way == 0:
        return whole[:place]
    if way == 1:
        return whole[:place] + draw(st.binary(max_size=8)) + whole[place:]
    return whole


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """The content of a config file."""
    if draw(st.integers(0, 9)) == 0:
        texts = st.text(max_size=40).map(lambda text: text.encode("utf-16"))
        return draw(
            st.one_of(st.binary(max_size=40), texts, st.sampled_from(BOMBS).map(lambda bomb: bomb.lstrip(b"- ")))
        )
    return draw(torn(written(draw(trees()))))


@st.composite
def spaces(draw: st.DrawFn) -> bytes:
    """The content of a space file: a config with open leaves, half of them of a sensible form."""
    if draw(st.booleans()):
        lines = draw(
            st.lists(st.sampled_from(SOUND), min_size=1, max_size=3, unique_by=lambda line: line.split(":")[0])
        )
        return draw(torn("\n".join(lines).encode()))
    lines = []
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3, unique=True)):
        values = yaml.safe_dump(draw(st.lists(VALUES, max_size=3)), default_flow_style=True).strip()
        if draw(st.booleans()):
            values = draw(st.sampled_from(["[1, 8]", "[0.1, 100]", "[1e-3, 2]", "[none, {name: discriminator}]"]))
        *above, last = path.split(".")
        opened = "{" + f"{last}: {draw(TAGS)} {values}" + "}"
        lines.append("".join(f"{{{key}: " for key in above[1:]) + opened + "}" * len(above[1:]))
        lines[-1] = f"{above[0]}: {lines[-1]}" if above else f"{last}: {draw(TAGS)} {values}"
    return draw(torn("\n".join(lines).encode("utf-8", "replace")))


@st.composite
def points(draw: st.DrawFn, names: dict[str, Any]) -> tuple[bool, bytes]:
    """The content of a file of points for leaves of these names and values, and whether it is sound, as half are."""
    sound = draw(st.booleans())
    listed: Any = []
    for _ in range(draw(st.integers(1, 4))):
        found = draw(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=3, unique=True))
        point: dict[Any, Any] = {name: draw(st.sampled_from(names[name])) for name in found}
        if not sound and draw(st.booleans()):
            point[draw(st.one_of(st.sampled_from([*sorted(names), *PATHS]), SCALARS))] = draw(VALUES)
        if not sound and draw(st.integers(0, 9)) == 0:
            point = {name.replace("/", "."): value for name, value in point.items() if isinstance(name, str)}
        listed.append(point)
    if not sound and draw(st.integers(0, 4)) == 0:
        listed = draw(st.sampled_from([listed[0], [listed], {"points": listed}, [*listed, {}], [*listed, 3], [], None]))
    content = written(listed)
    if draw(st.booleans()):
        content = json.dumps(listed, default=str).encode()
    if sound:
        return sound, content
    if draw(st.integers(0, 9)) == 0:
        content = draw(st.one_of(st.binary(max_size=40), st.sampled_from(BOMBS)))
    return sound, draw(torn(content))
