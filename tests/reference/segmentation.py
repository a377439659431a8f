"""Terms of segmentation as plain loops over nested lists of Python floats. Imports nothing from the package.

Images are lists of pixels; a pixel is a row of logits with a label, or a label alone. Label -1: no label.
"""

from math import log, nan

from reference.losses import kl, softmax


def pixel_means(values, labels):
    """Return, for each image, the mean of its pixels' values over those with a label; 0 without any."""
    means = []
    for row, own in zip(values, labels, strict=True):
        kept = [value for value, label in zip(row, own, strict=True) if label >= 0]
        means.append(sum(kept) / len(kept) if kept else 0.0)
    return means


def dense_hinton(student, teacher, labels, tau):
    """Return tau^2 KL(teacher || student) at temperature tau, averaged over the labelled pixels of each image."""
    values = []
    for one, other in zip(student, teacher, strict=True):
        pairs = zip(one, other, strict=True)
        values.append([tau * tau * kl([v / tau for v in t], [v / tau for v in s]) for s, t in pairs])
    return pixel_means(values, labels)


def dense_l1(student, teacher, labels):
    values = []
    for one, other in zip(student, teacher, strict=True):
        pairs = zip(one, other, strict=True)
        values.append([sum(abs(a - b) for a, b in zip(s, t, strict=True)) / len(s) for s, t in pairs])
    return pixel_means(values, labels)


def dense_prior(logits, labels, tau):
    """Return the cross-entropy at temperature tau with the labels, averaged over the labelled pixels of each image."""
    values = []
    for one, own in zip(logits, labels, strict=True):
        pairs = zip(one, own, strict=True)
        values.append([-log(softmax([v / tau for v in row])[label]) if label >= 0 else nan for row, label in pairs])
    return pixel_means(values, labels)


def iou(predicted, labels, num_classes):
    """Return the IoU of each class over all labelled pixels; NaN for a class that is neither predicted nor a label."""
    found = []
    for k in range(num_classes):
        both = either = 0
        for one, own in zip(predicted, labels, strict=True):
            for p, label in zip(one, own, strict=True):
                if label >= 0:
                    both += p == k and label == k
                    either += p == k or label == k
        found.append(both / either if either else nan)
    return found
