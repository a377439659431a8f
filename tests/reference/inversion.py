"""Total losses of inversions and the statistics of their targets, as plain loops over nested lists of floats.

Imports nothing from the package.
"""

from math import exp, log, sqrt


def cosines(rows):
    """Return the matrix of cosines between all pairs of rows."""
    lengths = [sqrt(sum(value * value for value in row)) for row in rows]
    matrix = []
    for one, length in zip(rows, lengths, strict=True):
        line = []
        for other, other_length in zip(rows, lengths, strict=True):
            line.append(sum(a * b for a, b in zip(one, other, strict=True)) / (length * other_length))
        matrix.append(line)
    return matrix


def softmax(row, temperature=1.0):
    powers = [exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(wanted, logits, temperature):
    """H(wanted, softmax(logits / temperature)) of one image."""
    total = 0.0
    for share, found in zip(wanted, softmax(logits, temperature), strict=True):
        total -= share * log(found)
    return total


def soft_target(logits, features, wanted, *, temperature, oh_weight, act_weight):
    """Return the loss of Wang's method: mean cross-entropy minus the weighted mean absolute feature."""
    total = 0.0
    for teacher_row, row in zip(logits, wanted, strict=True):
        total += oh_weight * cross_entropy(row, teacher_row, temperature) / len(logits)
    for row in features:
        for value in row:
            total -= act_weight * abs(value) / (len(features) * len(row))
    return total


def nayer(logits, student, labels, seen, running, memory, *, momentum, bn_weight, oh_weight, adv_weight):
    """Return NAYER's loss.

    `seen`, `running`, `memory`: BN statistics of the batch, of the teacher and of earlier batches, as lists of
    (means, variances). With `memory` None, only those of the batch count.
    """
    total = 0.0
    for layer, (target_mean, target_var) in enumerate(running):
        for part, target in ((0, target_mean), (1, target_var)):
            squares = 0.0
            for channel, wanted in enumerate(target):
                found = seen[layer][part][channel]
                if memory is not None:
                    found = (1 - momentum) * found + momentum * memory[layer][part][channel]
                squares += (found - wanted) ** 2
            total += bn_weight * sqrt(squares)
    for teacher_row, student_row, label in zip(logits, student, labels, strict=True):
        p, q = softmax(teacher_row), softmax(student_row)
        total -= oh_weight * log(p[label]) / len(logits)
        if p.index(max(p)) == q.index(max(q)):
            kl = sum(a * log(a / b) for a, b in zip(p, q, strict=True))
            total -= adv_weight * kl / len(logits)
    return total
