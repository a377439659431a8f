import pytest

from condkd_ray.core.method import InputError
from condkd_ray.core.units import byte_size, duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800), ("1d", 86400)]
)
def test_durations_are_parsed(text, seconds):
    assert parse_duration(text, "--time-budget") == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "2 h", "1x", "0s", "-1m", "1h30", f"{'9' * 400}d"])
def test_other_texts_are_rejected_as_durations(text):
    with pytest.raises(InputError, match=r"--time-budget is .*; accepted: hours, minutes and seconds"):
        parse_duration(text, "--time-budget")


@pytest.mark.parametrize(("text", "count"), [("500MB", 500_000_000), ("4GB", 4 * 10**9), ("1.5kB", 1500), ("7B", 7)])
def test_sizes_are_parsed(text, count):
    assert parse_size(text, "--pool-limit") == count


@pytest.mark.parametrize("text", ["", "500", "MB", "4 GB", "4gb", "0MB", "0.1B", f"{'9' * 400}GB"])
def test_other_texts_are_rejected_as_sizes(text):
    with pytest.raises(InputError, match=r"--pool-limit is .*; accepted: a size such as 500MB or 4GB"):
        parse_size(text, "--pool-limit")


@pytest.mark.parametrize(
    ("text", "count"),
    [("2TB", 2 * 10**12), ("3KiB", 3072), ("1.5MiB", 3 * 2**19), ("2.5GiB", 5 * 2**29), ("1TiB", 2**40)],
)
def test_terabytes_and_binary_units_are_parsed(text, count):
    assert parse_size(text, "--pool-limit") == count


@pytest.mark.parametrize("text", ["1,5GB", "1..5GB", "5.GB", "4GBit", "-1MB", "4GB a node"])
def test_a_size_with_other_characters_is_rejected(text):
    with pytest.raises(InputError, match="--pool-limit is"):
        parse_size(text, "--pool-limit")


@pytest.mark.parametrize(("count", "text"), [(300, "0 kB"), (12_000, "12 kB"), (1.5e6, "1.5 MB"), (2e9, "2.0 GB")])
def test_sizes_are_formatted(count, text):
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "--"), (float("inf"), "--"), (0, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min"), (100800, "1 d 04 h")],
)  # fmt: skip
def test_durations_are_formatted(seconds, text):
    assert duration(seconds) == text
