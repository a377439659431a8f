"""SSD-KD's formulas as plain loops over Python floats. Imports nothing from the package."""

from reference.losses import argmax, softmax


def phi(logits, gamma, held=(), batch=True):
    """Return the modulating function of rows of logits. `held`: class counts of stored samples, added to the batch."""
    classes = [argmax(row) for row in logits]
    counted = [kind for kind, count in enumerate(held) for _ in range(count)] + (classes if batch else [])
    values = []
    for row, mine in zip(logits, classes, strict=True):
        alike = 0
        for other in counted:
            if other == mine:
                alike += 1
        share = alike / len(counted) if counted else 0.0
        rest = 0.0
        for kind, probability in enumerate(softmax(row)):
            if kind != mine:
                rest += probability
        values.append((1 - share) * rest**gamma)
    return values


class Buffer:
    """Prioritized replay of `capacity` samples; `entries` are [id, delta, weight], oldest first."""

    def __init__(self, capacity, alpha=1.0, beta=0.4, eps=1e-6, evict="lowest"):
        self.capacity, self.alpha, self.beta, self.eps, self.evict = capacity, alpha, beta, eps, evict
        self.entries = []

    def add(self, ids):
        highest = 1.0
        if self.entries:
            highest = max(delta for _, delta, _ in self.entries)
        old = len(self.entries)
        for i in ids:
            self.entries.append([i, highest, 1.0])
        while len(self.entries) > self.capacity:
            lost = 0
            for place in range(1, old):
                if self.evict == "lowest" and self.entries[place][1] < self.entries[lost][1]:
                    lost = place
            del self.entries[lost]
            old -= 1

    def chances(self):
        """Return the probability P of each entry."""
        masses = [(abs(delta) + self.eps) ** self.alpha for _, delta, _ in self.entries]
        return [mass / sum(masses) for mass in masses]

    def corrections(self):
        """Return the importance weight (N P)^-beta of each entry."""
        return [(len(self.entries) * chance) ** -self.beta for chance in self.chances()]

    def feedback(self, ids, gaps):
        gaps_by_id = {}
        for i, gap in zip(ids, gaps, strict=True):
            gaps_by_id.setdefault(i, []).append(gap)
        for entry in self.entries:
            if entry[0] in gaps_by_id:
                entry[1] = entry[2] * sum(gaps_by_id[entry[0]]) / len(gaps_by_id[entry[0]])
        for entry, weight in zip(self.entries, self.corrections(), strict=True):
            if entry[0] in gaps_by_id:
                entry[2] = weight
