"""Total losses of the inversions with an adversarial term, as plain loops over nested lists of floats.

Imports nothing from the package.
"""

from math import log

from reference.losses import (
    bn_distance,
    class_prior,
    jensen_shannon,
    kl,
    log_softmax,
    logit_l1,
    mean,
    negative_entropy,
    norm,
    softmax,
    total_variation,
)


def entropies(logits):
    """Return the entropy of each row's softmax, to base 10."""
    found = []
    for row in logits:
        total = 0.0
        for p, log_p in zip(softmax(row), log_softmax(row), strict=True):
            total -= p * log_p / log(10)
        found.append(total)
    return found


def weighted(weights, values):
    return mean([weight * value for weight, value in zip(weights, values, strict=True)])


def first_counting(factor, seen, running):
    """Return the distance of the BN statistics, with the first layer weighted by `factor`."""
    return bn_distance(seen, running) + (factor - 1) * bn_distance(seen[:1], running[:1])


def zskt(student, teacher, weights):
    return -weighted(weights, [kl(t, s) for s, t in zip(student, teacher, strict=True)])


def dfad(student, teacher, weights):
    return -weighted(weights, logit_l1(student, teacher))


def dfq(student, teacher, weights, seen, running, *, first, alpha):
    likeness = first_counting(first, seen, running) + weighted(weights, entropies(teacher)) + negative_entropy(teacher)
    return zskt(student, teacher, weights) + alpha * likeness


def deep_inversion(teacher, labels, weights, seen, running, images, *, first, bn, oh, tv, l2):
    pixels = [value for image in images for channel in image for row in channel for value in row]
    return (
        bn * first_counting(first, seen, running)
        + oh * weighted(weights, class_prior(teacher, labels))
        + tv * total_variation(images)
        + l2 * norm(pixels)
    )


def competition(student, teacher, weights, temperature, reduction):
    """Return the competition loss of ADI: 1 minus the divergence, clamped to [0, 1]."""
    js = weighted(weights, jensen_shannon(student, teacher, temperature, reduction))
    return 1 - min(max(js, 0.0), 1.0)


def clipped(gradients, longest):
    """Return lists of floats, scaled to a joint norm of at most `longest`."""
    length = norm([value for gradient in gradients for value in gradient])
    factor = min(1.0, longest / length)
    return [[factor * value for value in gradient] for gradient in gradients]
