"""Augmentations of one image[c][h][w] as plain loops over Python floats. Imports nothing from the package."""

from math import cos, floor, pi, sin, sqrt


def reach(share, side):
    """Return the largest shift in pixels, at least 1 if the share is above 0."""
    return 0 if share == 0 else max(1, round(share * side))


def normalised(image, mean, std):
    """Normalise pixels in [0, 1] with a mean and a standard deviation for each channel."""
    return [[[(pixel - m) / s for pixel in row] for row in ch] for ch, m, s in zip(image, mean, std, strict=True)]


def rolled(image, down, right):
    """Shift content down by `down` and right by `right`, and wrap around at the edges."""
    height, width = len(image[0]), len(image[0][0])
    return [
        [[ch[(i - down) % height][(j - right) % width] for j in range(width)] for i in range(height)] for ch in image
    ]


def moved(image, down, right, black=None):
    """Shift content up by `down` and left by `right`, and fill with `black`, one value per channel, or with zeros."""
    height, width = len(image[0]), len(image[0][0])
    out = []
    for channel, dark in zip(image, black or [0.0] * len(image), strict=True):
        rows = []
        for i in range(height):
            row = []
            for j in range(width):
                y, x = i + down, j + right
                row.append(channel[y][x] if 0 <= y < height and 0 <= x < width else dark)
            rows.append(row)
        out.append(rows)
    return out


def mirrored(image):
    return [[list(reversed(row)) for row in channel] for channel in image]


def color(image, u):
    """Change brightness by -1/2 to 1/2, then saturation by a factor in 0..2, then contrast by a factor in 1/2..3/2."""
    channels, height, width = len(image), len(image[0]), len(image[0][0])
    out = [[[image[c][i][j] + (u[0] - 0.5) for j in range(width)] for i in range(height)] for c in range(channels)]
    for i in range(height):
        for j in range(width):
            grey = sum(out[c][i][j] for c in range(channels)) / channels
            for c in range(channels):
                out[c][i][j] = (out[c][i][j] - grey) * (2 * u[1]) + grey
    level = sum(pixel for channel in out for row in channel for pixel in row) / (channels * height * width)
    return [[[(pixel - level) * (u[2] + 0.5) + level for pixel in row] for row in channel] for channel in out]


def crop(image, u):
    """Shift by up to an eighth of the side in each direction."""
    moves = []
    for share, side in ((u[0], len(image[0])), (u[1], len(image[0][0]))):
        reach = floor(side / 8 + 0.5)
        moves.append(min(floor(share * (2 * reach + 1)), 2 * reach) - reach)
    return moved(image, *moves)


def cutout(image, u):
    """Set a rectangle of half the sides to zero, which may extend beyond the image."""
    spans = []
    for share, side in ((u[0], len(image[0])), (u[1], len(image[0][0]))):
        size = floor(side / 2 + 0.5)
        places = side + 1 if size % 2 == 0 else side
        first = min(floor(share * places), places - 1) - size // 2
        spans.append(range(first, first + size))
    return [
        [[0.0 if i in spans[0] and j in spans[1] else pixel for j, pixel in enumerate(row)] for i, row in enumerate(ch)]
        for ch in image
    ]


def flip(image, u):
    return mirrored(image) if u[0] < 0.5 else image


def resized_crop(image, u, low, high):
    """Crop a share of the area in low..high with an aspect ratio in 3/4..4/3, and resize it to the whole image."""
    height, width = len(image[0]), len(image[0][0])
    area, ratio = low + (high - low) * u[0], (4 / 3) ** (2 * u[1] - 1)
    wide, high_ = min(sqrt(area * ratio), 1.0), min(sqrt(area / ratio), 1.0)
    left, top = (1 - wide) * u[2] * width, (1 - high_) * u[3] * height
    out = []
    for channel in image:
        rows = []
        for i in range(height):
            y = min(max(top + (i + 0.5) * high_ - 0.5, 0.0), height - 1.0)
            row = []
            for j in range(width):
                x = min(max(left + (j + 0.5) * wide - 0.5, 0.0), width - 1.0)
                row.append(bilinear(channel, y, x))
            rows.append(row)
        out.append(rows)
    return out


def bilinear(channel, y, x):
    """Return the value at (y, x) in pixels, with pixel centres at integers; zero outside of the image."""
    top, left = floor(y), floor(x)
    total = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < len(channel) and 0 <= j < len(channel[0]):
                total += (1 - abs(y - i)) * (1 - abs(x - j)) * channel[i][j]
    return total


def warp(image, matrix):
    """Return the image sampled at matrix @ (x, y) for each pixel; coordinates are -1 and 1 at the edges."""
    height, width = len(image[0]), len(image[0][0])
    (a, b), (c, d) = matrix
    out = []
    for channel in image:
        rows = []
        for i in range(height):
            row = []
            for j in range(width):
                x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
                source_x, source_y = a * x + b * y, c * x + d * y
                row.append(bilinear(channel, ((source_y + 1) * height - 1) / 2, ((source_x + 1) * width - 1) / 2))
            rows.append(row)
        out.append(rows)
    return out


def scale(image, u):
    """Scale each direction by its own factor between 1 / 1.2 and 1.2."""
    x, y = (share * (1.2 - 1 / 1.2) + 1 / 1.2 for share in u[:2])
    return warp(image, ((x, 0.0), (0.0, y)))


def rotate(image, u):
    """Rotate by -15 to 15 degrees."""
    angle = (u[0] - 0.5) * 30 * pi / 180
    return warp(image, ((cos(angle), -sin(angle)), (sin(angle), cos(angle))))


GROUPS = {"color": color, "crop": crop, "cutout": cutout, "scale": scale, "rotate": rotate, "flip": flip}
"""Groups in the order in which `dsa` draws them. `flip` is used only if mirrored images keep their class."""
