import pytest
import torch
from contracts.toy_methods import Verdict, small, synthesize
from toy import make_teacher

from condkd_ray.inversion import DeepInversion
from condkd_ray.losses.priors import bn_distance
from condkd_ray.method import InputError


@pytest.mark.parametrize("best", [0, 1, 2, 3])
def test_the_images_of_the_lowest_loss_are_kept(best):
    guide = Verdict(*[-1e6 if step == best else 0.0 for step in range(4)])
    made, _ = synthesize(small(DeepInversion, steps=4), guide=guide)
    assert torch.equal(made.images, guide.shown[best])
    assert len({image.sum().item() for image in guide.shown}) == 4


def test_no_step_leaves_the_valid_range():
    guide, teacher = Verdict(*[0.0] * 6), make_teacher()
    synthesize(small(DeepInversion, steps=6, lr=1.0), teacher=teacher, guide=guide)
    for images in guide.shown:
        assert images.min() >= teacher.normalise(torch.zeros(1, 1, 1, 1)).item()
        assert images.max() <= teacher.normalise(torch.ones(1, 1, 1, 1)).item()


def test_inversion_brings_the_statistics_of_the_images_nearer_to_the_teachers():
    teacher = make_teacher()

    def distance(steps):
        made, _ = synthesize(small(DeepInversion, steps=steps), teacher=teacher)
        return bn_distance(teacher.observe(made.images).bn, teacher.running_bn)

    assert distance(40) < 0.5 * distance(1)


def test_it_ends_with_the_classes_it_was_asked_for():
    teacher = make_teacher()
    # So few images cannot have the teacher's statistics and 16 given classes: the class has to weigh more.
    made, _ = synthesize(small(DeepInversion, steps=60, bn_weight=0.3), teacher=teacher)
    assert (made.logits.argmax(1) == made.labels).double().mean() > 0.8


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        DeepInversion(**change)
