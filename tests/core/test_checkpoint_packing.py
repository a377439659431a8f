"""Tests of states that are packed to be sent to another process or stored in another state."""

from condkd_ray.core import checkpoint as states
from core.test_checkpoint import Box, fresh, step


def test_a_packed_state_does_not_change_with_the_live_state():
    state = fresh()
    step(state)
    packed = states.pack(state)
    following = [step(state) for _ in range(3)]
    again = states.unpack(fresh(seed=1), packed)
    assert [step(again) for _ in range(3)] == following
    # It can be unpacked more than once.
    twin = states.unpack(fresh(seed=2), packed)
    assert [step(twin) for _ in range(3)] == following


def test_a_packed_state_can_be_part_of_another_state(tmp_path):
    state = fresh()
    step(state)
    states.save(Box({3: states.pack(state)}), tmp_path / "box")
    following = step(state)
    packed = states.load(Box(), tmp_path / "box").value[3]
    assert step(states.unpack(fresh(seed=1), packed)) == following
