"""Objectives and selection rules of condensation methods, as plain loops over nested lists of floats.

Imports nothing from the package.
"""

from math import sqrt


def length(row):
    return sqrt(sum(value * value for value in row))


def gradient_distance(real, synthetic):
    """Return the sum of 1 - cosine. Arguments are indexed [layer][class][output channel][weight]."""
    total = 0.0
    for there_layer, here_layer in zip(real, synthetic, strict=True):
        for there_class, here_class in zip(there_layer, here_layer, strict=True):
            for there, here in zip(there_class, here_class, strict=True):
                dot = sum(a * b for a, b in zip(there, here, strict=True))
                total += 1.0 - dot / (length(there) * length(here))
    return total


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def herd(embedded, labels, ipc, num_classes):
    """Return the chosen row indices, class after class, by a greedy search that recomputes each mean."""
    chosen = []
    for label in range(num_classes):
        rows = [row for row, found in enumerate(labels) if found == label]
        wanted = mean([embedded[row] for row in rows])
        picked = []
        for _ in range(ipc):
            best, nearest = None, float("inf")
            for row in rows:
                if row in picked:
                    continue
                centre = mean([embedded[other] for other in [*picked, row]])
                distance = sum((a - b) ** 2 for a, b in zip(centre, wanted, strict=True))
                if distance < nearest:
                    best, nearest = row, distance
            picked.append(best)
        chosen += picked
    return chosen
