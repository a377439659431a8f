from pathlib import Path

import pytest

from condkd_ray.core.records import Record
from condkd_ray.report.tables import failures
from condkd_ray.report.tables.failures import screen
from report.report_factory import make_manifest, make_record, results

OUT = Path("runs/a sweep")


def failed(seed: int, reason: str, **changes) -> Record:
    fields = {"config_hash": f"{seed:04x}beef00", "status": "failed", "metrics": {}, "history": [{}] * seed}
    return make_record("mixed", 5, seed, reason=reason, **fields | changes)


def commands(records: list[Record], **changes) -> tuple[str, str]:
    lines = screen(results(records, make_manifest(records, **changes), OUT)).splitlines()
    return lines[-3].strip(), lines[-1].strip()


def test_without_failures_the_text_is_empty():
    records = [make_record(), make_record(seed=1, status="pruned"), make_record(seed=2, status="running")]
    assert screen(results(records, out=OUT)) == ""


def test_equal_reasons_are_listed_once_with_the_most_frequent_first():
    records = [make_record(), failed(1, "a full\n disk"), failed(2, "NaN"), failed(3, "NaN")]
    lines = screen(results(records, out=OUT)).splitlines()
    assert lines[:6] == [
        "3 of 4 trials failed",
        "",
        "2 x  NaN",
        "     mixed ipc 5 seed 2 (0002be), mixed ipc 5 seed 3 (0003be)",
        "1 x  a full disk",
        "     mixed ipc 5 seed 1 (0001be)",
    ]


def test_the_traces_of_exceptions_are_named(tmp_path):
    records = [failed(1, "ValueError: x"), failed(2, "NaN")]
    kept = tmp_path / "trials" / records[0].config_hash / "attempts.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    text = screen(results(records, out=tmp_path))
    assert [line.strip() for line in text.splitlines() if "traces:" in line] == [f"traces: {kept}"]


def test_the_text_fits_one_screen():
    records = [failed(seed, "x" * 500) for seed in range(40)]
    lines = screen(results(records, out=OUT)).splitlines()
    assert len(lines) == 9
    assert lines[3].endswith("(0004be), 35 more")
    assert all(len(line) <= 200 for line in lines[:8])
    each = [failed(seed, f"reason {seed}") for seed in range(40)]
    lines = screen(results(each, make_manifest(each), OUT)).splitlines()
    assert lines[14] == "and 34 more reasons, in runs/a sweep/records"
    assert len(lines) == 20


def test_the_command_repeats_the_earliest_failure_with_its_cache_and_threads():
    records = [failed(3, "NaN"), failed(1, "NaN", threads=4), failed(2, "NaN")]
    command = "python experiments/x.py --seeds 0 1 --cache 'my cache' --out 'runs/a sweep'"
    one, _ = commands(records, command=command)
    assert one == "condkd train --from-record 'runs/a sweep' 0001be --cache 'my cache' --threads 4"


def test_the_second_command_runs_only_failed_trials_again():
    records = [make_record(), failed(1, "NaN"), failed(2, "NaN")]
    command = "python x.py --only ffff eeee --seeds 0 1 --fresh --out=a"
    assert commands(records, command=command)[1] == "python x.py --seeds 0 1 --out=a --only 0001be 0002be"
    single = screen(
        results(records, make_manifest(records, command="condkd train x.yaml --fresh", experiment="train"), OUT)
    )
    assert single.endswith("\n\nTo run it again:\n  condkd train x.yaml\n")


def test_a_search_shows_no_command_to_run_failed_trials_again():
    records = [make_record(), failed(1, "NaN"), failed(2, "NaN")]
    search = {"objective": ["proxy/agreement"], "directions": ["maximize"], "constraints": [], "parameters": []}
    changes = {"command": "condkd search x.yaml --out a", "experiment": "search", "search": search}
    text = screen(results(records, make_manifest(records, **changes), OUT))
    assert text.endswith("\n  condkd train --from-record 'runs/a sweep' 0001be\n")
    assert "--only" not in text


def test_hashes_are_as_long_as_needed_to_be_unique():
    records = [failed(1, "NaN", config_hash="0001beef00"), make_record(config_hash="0001beef11")]
    assert "(0001beef0)" in screen(results(records, out=OUT))
    twins = [failed(1, "NaN", config_hash="0001beef"), make_record(config_hash="0001beef11")]
    assert "(0001beef)" in screen(results(twins, make_manifest(twins), OUT))


@pytest.mark.parametrize(
    ("hashes", "expected"),
    [
        (["abcdef0123", "abcdef9123"], ["abcdef0", "abcdef9"]),
        (["abcdefgh00", "abcdefgh01", "0bcdefgh00"], ["abcdefgh00", "abcdefgh01", "0bcdef"]),
        (["abcd", "abcdefgh"], ["abcd", "abcdef"]),
        ([], []),
    ],
)
def test_names_are_the_shortest_beginnings_that_no_other_hash_has(hashes, expected):
    assert [failures._short(hashes)[whole] for whole in hashes] == expected
