"""The losses of PRE-DFKD's memory as plain loops over nested lists of Python floats. Imports nothing of the package."""

from math import exp

from reference.losses import argmax, class_prior, mean, negative_entropy


def divergence(means, log_vars):
    """Return the mean over rows of the KL divergence from the standard normal distribution."""
    rows = []
    for mu, log_var in zip(means, log_vars, strict=True):
        total = 0.0
        for m, v in zip(mu, log_var, strict=True):
            total += (exp(v) + m * m - 1 - v) / 2
        rows.append(total)
    return mean(rows)


def off_normal(latents):
    """Return the squared deviations of mean and variance from 0 and 1, averaged over coordinates.

    The variance divides by the number of rows minus one, unless there is only one row.
    """
    means, variances = [], []
    for column in zip(*latents, strict=True):
        centre = mean(column)
        means.append(centre**2)
        variance = sum((value - centre) ** 2 for value in column) / max(1, len(column) - 1)
        variances.append((variance - 1) ** 2)
    return mean(variances) + mean(means)


def recall_loss(logits, latents, ie_weight, oh_weight):
    certain = mean(class_prior(logits, [argmax(row) for row in logits]))
    return ie_weight * negative_entropy(logits) + oh_weight * certain + off_normal(latents)
