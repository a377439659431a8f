"""Formulas of segmentation as plain loops over Python floats. Imports nothing from the package.

Images are lists of pixels; a pixel is a row of logits with a label, or a label alone. Label -1: no label.
"""

from math import log, nan

from reference.losses import argmax, kl, softmax


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


def region_mean(feature_map, mask):
    """Return the D means of a map [D][h][w] under a mask [H][W] of 0 and 1; 0 under an empty mask.

    Position (i, j) has as weight the mean of the mask over rows floor(i H / h) to ceil((i + 1) H / h), and columns
    likewise.
    """
    height, width = len(mask), len(mask[0])
    rows, columns = len(feature_map[0]), len(feature_map[0][0])

    def part(index, side, count):
        return range(index * side // count, -(-(index + 1) * side // count))

    weights = {}
    for i in range(rows):
        for j in range(columns):
            covered = [mask[y][x] for y in part(i, height, rows) for x in part(j, width, columns)]
            weights[i, j] = sum(covered) / len(covered)
    total = sum(weights.values())
    if total == 0:
        return [0.0 for _ in feature_map]
    return [sum(weights[i, j] * channel[i][j] for i, j in weights) / total for channel in feature_map]


def phi(images, gamma, held=(), batch=True, labels=None):
    """Return SSD-KD's modulating function of images, each a list of the logits of its pixels.

    `held`: pixel counts of stored samples by class, added to those of the batch. `labels`: those of the pixels of each
    image, -1 for none, whose classes are used in place of the predicted ones.
    """
    predicted = [[argmax(pixel) for pixel in pixels] for pixels in images]
    num_classes = len(images[0][0])
    counts = [float(held[kind]) if held else 0.0 for kind in range(num_classes)]
    if batch:
        for classes in predicted:
            for kind in classes:
                counts[kind] += 1
    values = []
    for number, pixels in enumerate(images):
        classes = predicted[number] if labels is None else [kind for kind in labels[number] if kind >= 0]
        common = 0.0
        for kind in range(num_classes):
            if classes and sum(counts):
                common += classes.count(kind) / len(classes) * counts[kind] / sum(counts)
        difficulty = 0.0
        for pixel in pixels:
            difficulty += (1 - max(softmax(pixel))) ** gamma / len(pixels)
        values.append((1 - common) * difficulty)
    return values
