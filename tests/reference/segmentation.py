"""Formulas for segmented images as plain loops over Python floats. Imports nothing from the package."""

from reference.losses import argmax, softmax


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
