import torch

from condkd_ray.data.copies import fingerprints, first_copies, notes, split
from data.image_files import random_pixels


def test_fingerprints_are_equal_only_for_equal_images():
    pixels = random_pixels(50, 1)[torch.arange(100) % 50]
    prints = fingerprints(pixels)
    assert len(set(prints)) == 50
    assert prints[:50] == prints[50:]
    pixels[99, 0, 7, 7] += 1
    assert fingerprints(pixels)[99] not in prints
    assert not set(fingerprints(pixels.view(100, 1, 4, 16))) & set(fingerprints(pixels))
    assert fingerprints(pixels.transpose(2, 3))[:1] == fingerprints(pixels.transpose(2, 3).contiguous())[:1]


def test_first_copies_are_the_rows_of_the_first_equal_image():
    assert first_copies([b"a", b"b", b"a", b"c", b"b", b"a"]).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_copies([]).tolist() == []


def test_without_copies_parts_are_cut_from_the_order():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    for sizes in ([5, 0, 15], [0, 4, 16], [0, 0, 20], [6, 7, 7]):
        parts = split(order, sizes, torch.arange(20))
        assert [part.tolist() for part in parts] == [rows.sort().values.tolist() for rows in order.split(sizes)]


def test_copies_are_in_the_part_of_the_first_one():
    first = torch.tensor([0, 1, 2, 0, 1, 5])
    parts = split(torch.tensor([3, 4, 1, 0, 2, 5]), [2, 2, 2], first)
    assert [part.tolist() for part in parts] == [[1, 4], [0, 3], [2, 5]]


def test_without_equal_images_there_are_no_notes():
    assert list(notes([b"a", b"b"], [b"c"], torch.tensor([0, 1, 0]))) == []


def test_copies_with_other_masks_are_counted():
    prints = [b"a", b"b", b"a", b"b"]
    masks = torch.zeros(4, 2, 3, dtype=torch.int16)
    assert list(notes(prints[:2], [], masks[:2])) == []
    masks[2, 1, 2] = -1
    assert list(notes(prints[:2], prints[2:], masks)) == [
        "ALL 2 test images are train images, pixel for pixel: mean IoU on them measures memorisation",
        "2 of 4 images have an identical copy with another mask: one mask is wrong",
    ]
