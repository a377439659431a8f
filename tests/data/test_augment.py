from functools import partial
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import augment as reference

from condkd_ray.core.samples import to_model
from condkd_ray.data.augment import cutout, dsa, pixels, resized_crop, roll_flip, shift_flip
from condkd_ray.models.teacher import Teacher

GROUPS = list(reference.GROUPS)


CHANNEL = (
    st.floats(0.05, 0.95),
    st.floats(0.05, 0.5),
)
NORMALISATIONS = st.lists(st.tuples(*CHANNEL), min_size=3, max_size=3).map(
    lambda pairs: tuple(zip(*pairs, strict=True))
)
"""(means, standard deviations) of three channels."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(size=6, *shape):
    """Return images (B, C, H, W) in float64 without two equal pixels."""
    return torch.randn(size, *(shape or (3, 8, 10)), generator=generator(), dtype=torch.float64)


def picking(group, flip):
    """Return a random stream whose next choice is `group`."""
    for seed in count():
        if torch.randint(5 + flip, (1,), generator=generator(seed)).item() == GROUPS.index(group):
            return generator(seed)


def augmented(images, group, *, flip=True, seed=0, siamese=False):
    return dsa(images, rng=generator(seed), choice=picking(group, flip), flip=flip, siamese=siamese)


def draws(batch, seed=0):
    """Return the parameters that `dsa` draws for each image."""
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
def test_without_siamese_draws_differ_from_image_to_image(group):
    twins = pictures(1).expand(20, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in augmented(twins, group)}) > 1


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_reach_the_images(group):
    images = pictures(2, 2, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(partial(augmented, group=group), (images,))


def test_without_flip_no_image_is_mirrored():
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


def test_cutout_hides_all_places_symmetrically():
    hidden = (augmented(torch.ones(20000, 1, 8, 8), "cutout") == 0).double().mean(0)[0]
    torch.testing.assert_close(hidden, hidden.flip(0), rtol=0, atol=0.02)
    torch.testing.assert_close(hidden, hidden.flip(1), rtol=0, atol=0.02)


def drawn(count, share, height, width, rng):
    """Return (down, right) of each image, and whether it is mirrored, as drawn by both kinds of shift."""
    moves = [
        torch.randint(-reach, reach + 1, (count,), generator=rng).tolist()
        for reach in (reference.reach(share, height), reference.reach(share, width))
    ]
    return list(zip(*moves, strict=True)), (torch.rand(count, generator=rng) < 0.5).tolist()


@pytest.mark.parametrize("share", [0, 0.05, 0.25])
@pytest.mark.parametrize("flip", [False, True])
def test_shift_flip_equals_the_plain_loop(share, flip):
    images, black = pictures(12), [-2.0, -1.5, 0.25]
    moves, mirror = drawn(12, share, 8, 10, generator())
    wanted = []
    for image, (down, right), turned in zip(images.tolist(), moves, mirror, strict=True):
        image = reference.moved(image, down, right, black)
        wanted.append(reference.mirrored(image) if turned and flip else image)
    dark = torch.tensor(black, dtype=images.dtype).view(1, 3, 1, 1)
    found = shift_flip(images, rng=generator(), share=share, flip=flip, black=dark)
    assert torch.equal(found, torch.tensor(wanted, dtype=images.dtype))
    assert 2 < sum(mirror) < 10


@pytest.mark.parametrize("share", [0, 0.05, 0.25])
@pytest.mark.parametrize("flip", [False, True])
def test_roll_flip_equals_the_plain_loop_with_one_draw_for_the_batch(share, flip):
    images, turns = pictures(3), []
    for seed in range(12):
        [(down, right)], [turned] = drawn(1, share, 8, 10, generator(seed))
        wanted = [reference.rolled(image, down, right) for image in images.tolist()]
        wanted = [reference.mirrored(image) for image in wanted] if turned and flip else wanted
        found = roll_flip(images, rng=generator(seed), share=share, flip=flip)
        assert torch.equal(found, torch.tensor(wanted, dtype=images.dtype))
        turns.append(turned)
    assert 2 < sum(turns) < 10


@given(height=st.integers(1, 9), width=st.integers(1, 9), share=st.floats(0, 1), flip=st.booleans())
def test_shift_flip_adds_no_pixel_and_draws_the_same_with_and_without_flip(height, width, share, flip):
    images = torch.arange(1, 1 + 3 * height * width, dtype=torch.float64).view(3, 1, height, width)
    rng = generator()
    moved = shift_flip(images, rng=rng, share=share, flip=flip, black=0.0)
    for image, out in zip(images, moved, strict=True):
        kept = out[out != 0]
        assert torch.isin(kept, image).all()
        assert len(kept.unique()) == len(kept)
    other = generator()
    shift_flip(images, rng=other, share=share, flip=not flip, black=0.0)
    assert torch.equal(rng.get_state(), other.get_state())


@given(height=st.integers(1, 9), width=st.integers(1, 9), share=st.floats(0, 1), flip=st.booleans())
def test_roll_flip_keeps_every_pixel_and_draws_the_same_with_and_without_flip(height, width, share, flip):
    images = torch.arange(3 * height * width, dtype=torch.float64).view(3, 1, height, width)
    rng, other = generator(), generator()
    rolled = roll_flip(images, rng=rng, share=share, flip=flip)
    assert torch.equal(rolled.flatten(1).sort().values, images.flatten(1))
    # The batch has one offset, so all images are moved equally.
    assert torch.equal(rolled - rolled[:1], images - images[:1])
    roll_flip(images, rng=other, share=share, flip=not flip)
    assert torch.equal(rng.get_state(), other.get_state())


@given(side=st.integers(1, 40), share=st.floats(0, 1))
def test_a_share_above_0_is_at_least_one_pixel_and_otherwise_rounded(side, share):
    assert pixels(share, side) == reference.reach(share, side)
    assert pixels(share, side) == (0 if share == 0 else max(1, round(share * side)))


@pytest.mark.parametrize("move", [partial(shift_flip, black=0.0), roll_flip], ids=["shift", "roll"])
@pytest.mark.parametrize(("share", "rows", "columns"), [(0.01, 1, 1), (0.125, 1, 3), (0.25, 2, 6)])
def test_shifts_are_at_most_the_share_of_each_side(move, share, rows, columns):
    # The position of a single bright pixel in the middle of 9 x 25 shows the shift.
    images = torch.zeros(1, 1, 9, 25)
    images[..., 4, 12] = 1.0
    rng = generator()
    found = torch.cat([move(images, rng=rng, share=share, flip=False) for _ in range(400)]).nonzero()[:, 2:]
    assert sorted({row - 4 for row in found[:, 0].tolist()}) == list(range(-rows, rows + 1))
    assert sorted({column - 12 for column in found[:, 1].tolist()}) == list(range(-columns, columns + 1))


def teacher_of(mean, std, side=8):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * side * side, 4))
    return Teacher.from_module(
        network, num_classes=4, image_shape=(3, side, side), mean=mean, std=std, flip_ok=True, train_size=1
    )


@given(constants=NORMALISATIONS, seed=st.integers(0, 999), share=st.floats(0, 0.5))
def test_shifting_after_normalising_equals_normalising_after_shifting(constants, seed, share):
    plain = torch.rand(5, 3, 8, 8, generator=generator())
    teacher = teacher_of(*constants)
    assert torch.equal(teacher.black, teacher.normalise(torch.zeros(1, 3, 1, 1)))
    moved = shift_flip(plain, rng=generator(seed), share=share, flip=True, black=0.0)
    viewed = shift_flip(teacher.normalise(plain), rng=generator(seed), share=share, flip=True, black=teacher.black)
    assert torch.equal(viewed, teacher.normalise(moved))
    # Compare with the plain loops in float64.
    [(down, right), *_], [turned, *_] = drawn(5, share, 8, 8, generator(seed))
    image = reference.moved(plain[0].double().tolist(), down, right)
    image = reference.normalised(reference.mirrored(image) if turned else image, *constants)
    torch.testing.assert_close(to_model(moved[:1].double(), *constants)[0], torch.tensor(image, dtype=torch.float64))


@pytest.mark.parametrize("move", [partial(shift_flip, black=0), roll_flip], ids=["shift", "roll"])
def test_moved_images_keep_their_type_and_layout(move):
    for images in (torch.ones(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 3, 8, 8)):
        found = move(images.contiguous(memory_format=torch.channels_last), rng=generator(), share=0.25, flip=True)
        assert found.dtype == images.dtype
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_gradients_reach_the_moved_images():
    images = pictures(2, 2, 5, 5).requires_grad_()
    for move in (partial(shift_flip, black=1.0), roll_flip):
        assert torch.autograd.gradcheck(lambda x, f=move: f(x, rng=generator(), share=0.3, flip=True), (images,))


def test_augmentations_change_neither_their_input_nor_the_global_generator():
    images, before = pictures(), torch.random.get_rng_state()
    kept = images.clone()
    shift_flip(images, rng=generator(), share=0.25, flip=True, black=1.0)
    roll_flip(images, rng=generator(), share=0.25, flip=True)
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


def test_crops_have_areas_and_ratios_in_the_given_ranges():
    # Brightness grows along each axis, so the range of a crop's values is its side minus a pixel.
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
    # The area is uniform from 1/4 to 1, and slightly smaller if a side is cut off.
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


@pytest.mark.parametrize("share", [0.0, 0.25, 0.375])
def test_cutout_zeroes_one_square_of_its_share_in_each_image(share):
    images = torch.ones(400, 3, 16, 16)
    hidden = cutout(images, rng=generator(), share=share) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 2])
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert torch.equal(hidden[:, 0].sum((1, 2)), rows * columns)
    side = int(16 * share + 0.5)
    assert max(rows.max(), columns.max()) == side
    places = {tuple(one.flatten().tolist()) for one in hidden[:, 0]}
    assert len(places) > 50 if share else len(places) == 1
    assert images.min() == 1
