"""The distillation losses as plain loops over nested lists of Python floats. Imports nothing from the package."""

from math import log, sqrt

from reference.losses import hinton, kl, log_softmax, mean, softmax


def soft_cross_entropy(student, teacher, tau):
    losses = []
    for s, t in zip(student, teacher, strict=True):
        wanted, given = softmax([value / tau for value in t]), log_softmax([value / tau for value in s])
        total = 0.0
        for p, log_q in zip(wanted, given, strict=True):
            total -= p * log_q
        losses.append(tau * tau * total)
    return losses


def binary_kl(p, q):
    """Return KL(p || q) of two Bernoulli distributions."""
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def target_class(student, teacher, label, tau):
    """Return TCKD, the target-class part of DKD, of two rows of logits."""
    p, q = softmax([value / tau for value in teacher])[label], softmax([value / tau for value in student])[label]
    return binary_kl(p, q)


def other_classes(student, teacher, label, tau):
    """Return NCKD, the non-target-class part of DKD, of two rows of logits."""
    t = [value / tau for k, value in enumerate(teacher) if k != label]
    s = [value / tau for k, value in enumerate(student) if k != label]
    return kl(t, s)


def decoupled(student, teacher, labels, tau, alpha, beta):
    losses = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        sure, others = target_class(s, t, label, tau), other_classes(s, t, label, tau)
        losses.append(tau * tau * (alpha * sure + beta * others))
    return losses


def energy(activations):
    """Return the mean square over channels, [row][column], of activations [channel][row][column]."""
    height, width = len(activations[0]), len(activations[0][0])
    return [[mean([channel[i][j] ** 2 for channel in activations]) for j in range(width)] for i in range(height)]


def halved(image):
    """Return the means of 2 x 2 blocks."""
    return [
        [mean([image[i + a][j + b] for a in (0, 1) for b in (0, 1)]) for j in range(0, len(image[0]), 2)]
        for i in range(0, len(image), 2)
    ]


def unit(image):
    flat = [value for row in image for value in row]
    length = sqrt(sum(value * value for value in flat))
    return [value / length for value in flat]


def attention_distance(student, teacher):
    """Return the distance of two attention maps [row][column] of equal size."""
    return mean([(a - b) ** 2 for a, b in zip(unit(student), unit(teacher), strict=True)])


def attention(student, teacher, tau, weight, pairs):
    """Return the attention-transfer loss. `pairs`: (student, teacher) layer outputs [sample][channel][row][column]."""
    losses = hinton(student, teacher, tau)
    for ours, wanted in pairs:
        for index in range(len(losses)):
            losses[index] += weight * attention_distance(energy(ours[index]), energy(wanted[index]))
    return losses
