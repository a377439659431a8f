"""Points that a user suggests to a search lie in its space, or are refused with the name of the leaf."""

import pytest
from optuna.trial import FixedTrial

from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.study.points import check_point, left_open
from condkd_ray.study.space import close, parse

TREE = parse("""
data: {name: digits}
inversion: {name: fast, bn_weight: !log_uniform [0.1, 100], steps: !int [2, 10], width: !choice [16, 32]}
condensation: {name: random_real, ipc: 1}
guidance: !choice
  - {name: discriminator, weight: !log_uniform [1, 100], loss: !choice [hinge, wasserstein]}
  - {name: moments, weight: !uniform [0, 2]}
  - none
rounds: !choice [1, 2]
""")
WHOLE = {
    "inversion/bn_weight": 2,
    "inversion/steps": 3.0,
    "inversion/width": 32,
    "guidance/name": "moments",
    "guidance/weight": "1e-3",
    "rounds": 2,
}


def test_values_of_a_point_are_converted_to_the_types_of_the_space():
    point = check_point(TREE, WHOLE, "point")
    assert point == WHOLE | {"inversion/steps": 3, "guidance/weight": 0.001}
    assert isinstance(point["inversion/steps"], int)
    assert isinstance(point["inversion/bn_weight"], float)
    assert left_open(TREE, point) == []
    assert to_tree(close(TREE, FixedTrial(point)))["guidance"]["weight"] == 0.001
    assert left_open(TREE, {"guidance/name": "none", "rounds": 1}) == [
        f"inversion/{n}" for n in ("bn_weight", "steps", "width")
    ]


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (
            {"inversion/bn_wieght": 1},
            r"'inversion/bn_wieght' names no open leaf \(did you mean inversion/bn_weight\?\); ",
        ),
        (
            {"inversion.bn_weight": 1},
            r"'inversion.bn_weight' names no open leaf \(did you mean inversion/bn_weight\?\); ",
        ),
        (
            {"guidance": "moments"},
            r"'guidance' names no open leaf .*; accepted: inversion/bn_weight, .*guidance/name, ",
        ),
        ({"data/name": "mnist"}, r"'data/name' names no open leaf"),
        ({7: 1}, r"7 names no open leaf; accepted: inversion/bn_weight"),
        ({"inversion/bn_weight": -3}, "inversion/bn_weight is -3; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": 0}, "inversion/bn_weight is 0; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": 101.0}, "inversion/bn_weight is 101.0; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": "much"}, "inversion/bn_weight is 'much'; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": True}, "inversion/bn_weight is True; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": None}, "inversion/bn_weight is None; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": [1]}, r"inversion/bn_weight is \[1\]; accepted: a number from 0.1 to 100"),
        ({"inversion/bn_weight": float("nan")}, "inversion/bn_weight is nan; accepted: a number"),
        ({"inversion/bn_weight": 10**400}, "inversion/bn_weight is 1000.*; accepted: a number"),
        ({"inversion/steps": 2.5}, "inversion/steps is 2.5; accepted: a whole number from 2 to 10"),
        ({"inversion/steps": 11}, "inversion/steps is 11; accepted: a whole number from 2 to 10"),
        ({"rounds": True}, "rounds is True; accepted: one of 1, 2"),
        ({"inversion/width": "16"}, "inversion/width is '16'; accepted: one of 16, 32"),
        ({"guidance/name": "moment"}, "guidance/name is 'moment'; accepted: one of discriminator, moments, none"),
        (
            {"guidance/name": "moments", "guidance/loss": "hinge"},
            "guidance/loss is 'hinge' where guidance/name is 'moments'; "
            "accepted: only with guidance/name discriminator",
        ),
        (
            {"guidance/loss": "hinge"},
            "guidance/loss is 'hinge' without guidance/name; accepted: only with guidance/name discriminator",
        ),
        ({"guidance/name": "moments", "guidance/weight": 50}, "guidance/weight is 50; accepted: a number from 0 to 2"),
        (
            {"guidance/name": "none", "guidance/weight": 1},
            "guidance/weight is 1 where guidance/name is 'none'; "
            "accepted: only with guidance/name discriminator or moments",
        ),
    ],
)
def test_a_point_outside_the_space_is_refused_with_the_accepted_values(point, message):
    with pytest.raises(InputError, match=f"^point 2 of p.yaml: {message}"):
        check_point(TREE, point, "point 2 of p.yaml")
