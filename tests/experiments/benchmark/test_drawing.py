import pytest
from benchmark import drawing

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"HELD": 640, "ROUND": 20, "BATCH": 16, "READ_BYTES": 1e6}.items():
        monkeypatch.setattr(drawing, name, value)


def test_draws_before_and_after_compaction_are_measured(cluster):
    after, before = drawing.draw()
    assert (after.bound, before.bound) == (1.2, 2.0)
    assert "after compaction (2 chunks)" in after.what
    assert "before compaction (32 chunks)" in before.what
    assert len(after.values) == len(before.values) == 5
    assert min(*after.values, *before.values) > 0


def test_memory_of_readers_is_measured(cluster):
    (measured,) = drawing.reader()
    assert len(measured.values) == 5
    assert max(measured.values) < 100
