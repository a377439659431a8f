import torch

from condkd_ray.core.samples import pixel_counts


def test_counts_are_of_each_image_and_leave_out_pixels_without_a_class():
    labels = torch.tensor([[[0, 1, 1], [-1, 1, -1]], [[2, 2, 2], [2, 2, 2]], [[-1, -1, -1], [-1, -1, -1]]])
    wanted = [[1, 3, 0, 0], [0, 0, 6, 0], [0, 0, 0, 0]]
    assert pixel_counts(labels, 4).tolist() == wanted
    assert pixel_counts(labels.to(torch.int16), 4).tolist() == wanted
    assert pixel_counts(labels[:0], 4).shape == (0, 4)
