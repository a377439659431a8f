import pytest
import torch
from toy import samples

from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory.memory import Draw, IdQueue, interleaved


def draw(count, first_id, weight):
    return Draw(samples(count, seed=first_id), torch.arange(count) + first_id, torch.full((count,), weight))


@pytest.mark.parametrize(("fresh", "old"), [(114, 14), (12, 4), (9, 0), (0, 5), (3, 7), (1, 1)])
def test_every_prefix_of_a_mixed_draw_has_the_share_of_both(fresh, old):
    mixed = interleaved(draw(fresh, 0, 1.0), draw(old, 1000, 2.0))
    assert sorted(mixed.ids.tolist()) == [*range(fresh), *range(1000, 1000 + old)]
    assert torch.equal(mixed.weights, 1.0 + (mixed.ids >= 1000))
    share = old / (fresh + old)
    for count in range(1, fresh + old + 1):
        assert abs(int((mixed.ids[:count] >= 1000).sum()) - share * count) <= 1


def test_mixed_samples_keep_their_labels_logits_and_ids():
    fresh, old = draw(5, 0, 1.0), draw(3, 1000, 2.0)
    mixed = interleaved(fresh, old)
    for row, id in enumerate(mixed.ids.tolist()):
        source, place = (old, id - 1000) if id >= 1000 else (fresh, id)
        for name in ("images", "labels", "logits"):
            assert torch.equal(getattr(mixed.samples, name)[row], getattr(source.samples, name)[place])


def test_an_id_queue_returns_no_ids_for_a_count_of_0():
    queue, rng = IdQueue(torch.arange(4)), Streams(0)
    assert queue.take(0, rng).tolist() == []
    assert sorted(queue.take(4, rng).tolist()) == [0, 1, 2, 3]
