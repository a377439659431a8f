from functools import partial
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import augment as reference

from condkd_ray.augment import dsa, resized_crop, shift_flip

GROUPS = list(reference.GROUPS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(size=6, *shape):
    """Images (B, C, H, W) in float64 without two equal pixels."""
    return torch.randn(size, *(shape or (3, 8, 10)), generator=generator(), dtype=torch.float64)


def picking(group, flip):
    """A stream whose next choice is `group`."""
    for seed in count():
        if torch.randint(5 + flip, (1,), generator=generator(seed)).item() == GROUPS.index(group):
            return generator(seed)


def augmented(images, group, *, flip=True, seed=0, siamese=False):
    return dsa(images, rng=generator(seed), choice=picking(group, flip), flip=flip, siamese=siamese)


def draws(batch, seed=0):
    """The parameters `dsa` draws for each image."""
    return torch.rand(3, batch, generator=generator(seed)).T.tolist()


@pytest.mark.parametrize("shape", [(3, 8, 10), (1, 9, 7)], ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_each_group_equals_the_plain_loop(group, shape):
    images = pictures(6, *shape)
    wanted = [reference.GROUPS[group](x, u) for x, u in zip(images.tolist(), draws(6), strict=True)]
    torch.testing.assert_close(augmented(images, group), torch.tensor(wanted, dtype=images.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
def test_siamese_gives_every_image_the_draw_of_the_first(group):
    images = pictures(5)
    together = augmented(images, group, siamese=True)
    alone = torch.cat([augmented(image[None], group) for image in images])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("group", GROUPS)
def test_otherwise_draws_differ_from_image_to_image(group):
    twins = pictures(1).expand(20, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in augmented(twins, group)}) > 1


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_reach_the_images(group):
    images = pictures(2, 2, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(partial(augmented, group=group), (images,))


def test_without_flip_no_draw_ever_mirrors():
    images = pictures(2)
    for seed in range(200):
        out = dsa(images, rng=generator(seed), choice=generator(seed), flip=False)
        assert not torch.equal(out, images.flip(3))
    seen = {int(torch.randint(5, (1,), generator=generator(seed))) for seed in range(200)}
    assert seen == set(range(5))


def test_with_flip_half_of_the_images_are_mirrored():
    images = pictures(1, 1, 2, 3).expand(2000, -1, -1, -1)
    mirrored = (augmented(images, "flip") == images.flip(3)).flatten(1).all(1).double()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 2000**0.5


def test_all_groups_are_picked_equally_often():
    choice, rng, images = generator(), generator(), torch.ones(1, 1, 4, 4)
    color = sum((dsa(images, rng=rng, choice=choice, flip=True) > 1.0001).any().item() for _ in range(3000))
    # Only a brighter image exceeds 1, and half of the color draws are brighter.
    assert abs(color / 3000 - 1 / 12) < 4 * (1 / 12 * 11 / 12 / 3000) ** 0.5


def test_cutout_hides_the_square_evenly():
    hidden = (augmented(torch.ones(20000, 1, 8, 8), "cutout") == 0).double().mean(0)[0]
    torch.testing.assert_close(hidden, hidden.flip(0), rtol=0, atol=0.02)
    torch.testing.assert_close(hidden, hidden.flip(1), rtol=0, atol=0.02)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_shift_flip_equals_the_plain_loop(shift, flip):
    images, rng = pictures(12), generator()
    moves = torch.randint(-shift, shift + 1, (2, 12), generator=rng).T.tolist()
    mirror = (torch.rand(12, generator=rng) < 0.5).tolist()
    wanted = []
    for image, (down, right), turned in zip(images.tolist(), moves, mirror, strict=True):
        image = reference.moved(image, down, right)
        wanted.append(reference.mirrored(image) if turned and flip else image)
    found = shift_flip(images, rng=generator(), shift=shift, flip=flip)
    assert torch.equal(found, torch.tensor(wanted, dtype=images.dtype))
    assert 2 < sum(mirror) < 10


@given(height=st.integers(1, 9), width=st.integers(1, 9), shift=st.integers(0, 12), flip=st.booleans())
def test_shift_flip_invents_no_pixel_and_draws_the_same_either_way(height, width, shift, flip):
    images = torch.arange(1, 1 + 3 * height * width, dtype=torch.float64).view(3, 1, height, width)
    rng = generator()
    moved = shift_flip(images, rng=rng, shift=shift, flip=flip)
    for image, out in zip(images, moved, strict=True):
        kept = out[out != 0]
        assert torch.isin(kept, image).all()
        assert len(kept.unique()) == len(kept)
    other = generator()
    shift_flip(images, rng=other, shift=shift, flip=not flip)
    assert torch.equal(rng.get_state(), other.get_state())


def test_neither_touches_its_input_nor_the_global_generator():
    images, before = pictures(), torch.random.get_rng_state()
    kept = images.clone()
    shift_flip(images, rng=generator(), shift=2, flip=True)
    for group in GROUPS:
        augmented(images, group)
    assert torch.equal(images, kept)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.9, 1.0)])
def test_resized_crop_equals_the_plain_loop(flip, scale):
    images = pictures(12)
    draws = torch.rand(5, 12, generator=generator()).T.tolist()
    wanted = []
    for image, u in zip(images.tolist(), draws, strict=True):
        image = reference.resized_crop(image, u, *scale)
        wanted.append(reference.mirrored(image) if flip and u[4] < 0.5 else image)
    found = resized_crop(images, rng=generator(), scale=scale, flip=flip)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=images.dtype), rtol=1e-4, atol=1e-4)
    assert 2 < sum(u[4] < 0.5 for u in draws) < 10


def test_a_crop_of_a_white_image_is_white_up_to_the_edge():
    images = torch.ones(500, 1, 7, 9)
    torch.testing.assert_close(resized_crop(images, rng=generator(), flip=True), images)


def test_parts_have_the_shares_asked_for():
    # Brightness grows along each axis: the span of a crop tells its side, less a pixel.
    ramp = torch.arange(64.0)
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)]).expand(4000, 2, 64, 64)
    crops = resized_crop(images, rng=generator(), scale=(0.25, 1.0), flip=False).flatten(2)
    sides = (crops.amax(2) - crops.amin(2)) / 63
    area = sides.prod(1)
    assert area.min() > 0.22
    assert area.max() > 0.9
    ratio = sides[:, 0] / sides[:, 1]
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4
    # Uniform from 1/4 to 1, a little less where a side was cut.
    assert 0.55 < area.mean() < 0.64


def test_crops_differ_from_image_to_image_and_draw_the_same_with_and_without_flip():
    twins, one, other = pictures(1).expand(20, -1, -1, -1), generator(), generator()
    crops = resized_crop(twins, rng=one, flip=False)
    assert len({tuple(image.flatten().tolist()) for image in crops}) == 20
    resized_crop(twins, rng=other, flip=True)
    assert torch.equal(one.get_state(), other.get_state())


def test_gradients_reach_the_cropped_images():
    images = pictures(2, 2, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resized_crop(x, rng=generator(), flip=True), (images,))
