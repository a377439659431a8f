"""The losses as plain loops over nested lists of Python floats. Imports nothing from the package."""

from math import exp, log, log10, sqrt


def log_softmax(row):
    highest = max(row)
    total = 0.0
    for value in row:
        total += exp(value - highest)
    return [value - highest - log(total) for value in row]


def softmax(row):
    return [exp(value) for value in log_softmax(row)]


def argmax(row):
    best = 0
    for index, value in enumerate(row):
        if value > row[best]:
            best = index
    return best


def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def kl(teacher, student):
    """Return KL(teacher || student) of two rows of logits."""
    log_teacher, log_student = log_softmax(teacher), log_softmax(student)
    total = 0.0
    for p, q in zip(log_teacher, log_student, strict=True):
        total += exp(p) * (p - q)
    return total


def hinton(student, teacher, tau):
    losses = []
    for s, t in zip(student, teacher, strict=True):
        losses.append(tau * tau * kl([value / tau for value in t], [value / tau for value in s]))
    return losses


def hinton_gradient(student, teacher, tau):
    """Return the gradients of the losses at the student logits: tau (softmax(s / tau) - softmax(t / tau))."""
    gradients = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax([value / tau for value in s]), softmax([value / tau for value in t])
        gradients.append([tau * (a - b) for a, b in zip(p, q, strict=True)])
    return gradients


def logit_l1(student, teacher):
    losses = []
    for s, t in zip(student, teacher, strict=True):
        losses.append(mean([abs(a - b) for a, b in zip(s, t, strict=True)]))
    return losses


def class_prior(logits, labels, temperature=1.0):
    softened = [[value / temperature for value in row] for row in logits]
    return [-log_softmax(row)[label] for row, label in zip(softened, labels, strict=True)]


def norm(values):
    total = 0.0
    for value in values:
        total += value * value
    return sqrt(total)


def bn_distance(seen, running):
    """Return the distance of BN statistics; both arguments are lists of (means, variances), one per layer."""
    total = 0.0
    for (mean_seen, var_seen), (mean_running, var_running) in zip(seen, running, strict=True):
        total += norm([a - b for a, b in zip(var_running, var_seen, strict=True)])
        total += norm([a - b for a, b in zip(mean_running, mean_seen, strict=True)])
    return total


def batch_statistics(batch):
    """Return the means and biased variances of each channel of images[b][c][h][w]."""
    means, variances = [], []
    for channel in range(len(batch[0])):
        values = [pixel for image in batch for row in image[channel] for pixel in row]
        means.append(mean(values))
        variances.append(mean([(value - means[-1]) ** 2 for value in values]))
    return means, variances


def mix_bn(seen, memory, momentum):
    mixed = []
    for layer_seen, layer_memory in zip(seen, memory, strict=True):
        layer = []
        for now, before in zip(layer_seen, layer_memory, strict=True):
            layer.append([(1 - momentum) * a + momentum * b for a, b in zip(now, before, strict=True)])
        mixed.append(tuple(layer))
    return mixed


def negative_entropy(logits):
    probabilities = [softmax(row) for row in logits]
    total = 0.0
    for k in range(len(logits[0])):
        p = mean([row[k] for row in probabilities])
        total += p * log10(p)
    return total


def negative_activation(features):
    return -mean([abs(value) for row in features for value in row])


def total_variation(batch):
    """Return the sum of the norms of differences in four directions: right, down, down-right, down-left."""
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for image in batch:
            for channel in image:
                for i in range(len(channel) - down):
                    for j in range(len(channel[0])):
                        if 0 <= j + right < len(channel[0]):
                            squares += (channel[i][j] - channel[i + down][j + right]) ** 2
        total += sqrt(squares)
    return total


def disagreement(student, teacher):
    losses = []
    for s, t in zip(student, teacher, strict=True):
        losses.append(-kl(t, s) if argmax(s) == argmax(t) else 0.0)
    return losses


def jensen_shannon(student, teacher, temperature, reduction):
    """Return the divergence of PRE-DFKD: KL(middle || side), clamped, as a mean or a sum over classes."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        q, p = softmax([value / temperature for value in s]), softmax([value / temperature for value in t])
        total = 0.0
        for a, b in zip(p, q, strict=True):
            a, b, m = (min(max(x, 0.01), 0.99) for x in (a, b, (a + b) / 2))
            total += 0.5 * m * log(m / a) + 0.5 * m * log(m / b)
        losses.append(total / len(s) if reduction == "mean" else total)
    return losses


def instance_discrimination(local, whole, count, temperature):
    """Return the mean loss of the first `count` rows plus the mean of the others, if there are any."""
    losses = []
    for i in range(len(local)):
        alike = [sum(a * b for a, b in zip(local[i], row, strict=True)) / temperature for row in whole]
        losses.append(-log_softmax(alike)[i])
    return mean(losses[:count]) + (mean(losses[count:]) if losses[count:] else 0.0)


def sigmoid(value):
    return 1 / (1 + exp(-value))


def discriminator_loss(real, fake, smoothing=0.0):
    """Return the binary cross-entropy with targets 1 - smoothing for real and 0 for fake."""
    losses = []
    for value in real:
        losses.append(-(1 - smoothing) * log(sigmoid(value)) - smoothing * log(1 - sigmoid(value)))
    return mean(losses) + mean([-log(1 - sigmoid(value)) for value in fake])


def generator_loss(fake):
    return mean([-log(sigmoid(value)) for value in fake])


def hinge(real, fake):
    return mean([max(0.0, 1 - value) for value in real]) + mean([max(0.0, 1 + value) for value in fake])


def gradient_penalty(function, points, step=1e-5):
    """Return half the mean squared norm of the gradient of `function`, computed by central differences."""
    norms = []
    for point in points:
        total = 0.0
        for place in range(len(point)):
            up, down = list(point), list(point)
            up[place] += step
            down[place] -= step
            total += ((function(up) - function(down)) / (2 * step)) ** 2
        norms.append(total)
    return mean(norms) / 2


def squared_distance(x, y):
    total = 0.0
    for a, b in zip(x, y, strict=True):
        total += (a - b) ** 2
    return total


def kernel(x, y, median, bandwidths):
    total = 0.0
    for bandwidth in bandwidths:
        total += exp(-squared_distance(x, y) / (bandwidth * median))
    return total


def mmd(left, right, median, bandwidths):
    """Return the biased squared MMD of two sets of vectors."""
    within_left = mean([kernel(x, y, median, bandwidths) for x in left for y in left])
    within_right = mean([kernel(x, y, median, bandwidths) for x in right for y in right])
    between = mean([kernel(x, y, median, bandwidths) for x in left for y in right])
    return within_left + within_right - 2 * between


def class_mmd(left, left_labels, right, right_labels, median, bandwidths=(0.5, 1.0, 2.0)):
    """Return the mean MMD over the classes that occur on both sides."""
    values = []
    for label in sorted(set(left_labels) & set(right_labels)):
        ours = [x for x, y in zip(left, left_labels, strict=True) if y == label]
        theirs = [x for x, y in zip(right, right_labels, strict=True) if y == label]
        values.append(mmd(ours, theirs, median, bandwidths))
    return mean(values) if values else 0.0


def median_distance(vectors):
    """Return the lower median of the squared distances of all pairs."""
    pairs = []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            pairs.append(squared_distance(vectors[i], vectors[j]))
    return sorted(pairs)[(len(pairs) - 1) // 2]


def proxy(student, teacher):
    """Return the share of rows with equal argmax, and the mean KL(teacher || student)."""
    same = [1.0 if argmax(s) == argmax(t) else 0.0 for s, t in zip(student, teacher, strict=True)]
    return mean(same), mean([kl(t, s) for s, t in zip(student, teacher, strict=True)])


def covariance(vectors):
    """Return the biased covariance matrix as a list of rows."""
    columns = [list(column) for column in zip(*vectors, strict=True)]
    centred = [[value - mean(column) for value in column] for column in columns]
    return [[mean([a * b for a, b in zip(x, y, strict=True)]) for y in centred] for x in centred]


def class_moments(left, left_labels, right, right_labels):
    """Return the squared distances of means and of covariances, averaged over the classes on both sides."""
    means, covariances = [], []
    for label in sorted(set(left_labels) & set(right_labels)):
        ours = [x for x, y in zip(left, left_labels, strict=True) if y == label]
        theirs = [x for x, y in zip(right, right_labels, strict=True) if y == label]
        centre = [[mean(column) for column in zip(*side, strict=True)] for side in (ours, theirs)]
        means.append(squared_distance(*centre))
        rows = zip(covariance(ours), covariance(theirs), strict=True)
        covariances.append(sum(squared_distance(row, other) for row, other in rows))
    return mean(means), mean(covariances)


def left_shares(left_labels, right_labels):
    """Return weights of the left and right rows that give both sides the left's proportions of the common classes."""
    common = [y for y in left_labels if y in right_labels]
    ours = [1 / len(common) if y in right_labels else 0.0 for y in left_labels]
    theirs = [common.count(y) / len(common) / right_labels.count(y) for y in right_labels]
    return ours, theirs


def marginal_mmd(left, left_labels, right, right_labels, median, bandwidths=(0.5, 1.0, 2.0)):
    """Return the squared MMD over all classes, with the left's class proportions on both sides."""
    a, b = left_shares(left_labels, right_labels)

    def total(xs, us, ys, vs):
        rows = [(x, u, y, v) for x, u in zip(xs, us, strict=True) for y, v in zip(ys, vs, strict=True)]
        return sum(u * v * kernel(x, y, median, bandwidths) for x, u, y, v in rows)

    return total(left, a, left, a) + total(right, b, right, b) - 2 * total(left, a, right, b)


def marginal_moments(left, left_labels, right, right_labels):
    """Return the squared distances of means and covariances over all classes, with the left's class proportions."""
    found = []
    for rows, shares in zip((left, right), left_shares(left_labels, right_labels), strict=True):
        size = range(len(rows[0]))
        centre = [sum(u * x[i] for x, u in zip(rows, shares, strict=True)) for i in size]
        spread = [
            [sum(u * (x[i] - centre[i]) * (x[j] - centre[j]) for x, u in zip(rows, shares, strict=True)) for j in size]
            for i in size
        ]
        found.append((centre, spread))
    (centre, spread), (other_centre, other_spread) = found
    return squared_distance(centre, other_centre), sum(map(squared_distance, spread, other_spread))
