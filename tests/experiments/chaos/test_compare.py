import math

from chaos.compare import differences
from report.report_factory import altered, make_record, results, sweep

from condkd_ray.core.records import write_record
from condkd_ray.report.tables import arms


def written(folder, records):
    for record in records:
        write_record(folder, record)
    arms.write(results(records, out=folder))
    return folder


def test_times_and_who_made_what_do_not_matter(tmp_path):
    records = [altered(record, metrics=record.metrics | {"a/b": math.nan}) for record in sweep()]
    slower = [
        altered(
            record,
            metrics=record.metrics | {"time/wall_seconds": 1e6, "time/cpu_seconds": 1e6, "pool/made": 2.0},
            history=[row | {"time/wall_seconds": 1e6, "pool/made": 1.0} for row in record.history],
        )
        for record in records
    ]
    assert differences(written(tmp_path / "a", slower), written(tmp_path / "b", records)) == []


def test_each_difference_is_told(tmp_path):
    here = [make_record(seed=seed, config_hash=f"{seed:012d}ffff") for seed in range(3)]
    last = here[1].history[-1] | {"kd/loss": 0.12345}
    changed = altered(here[1], history=[*here[1].history[:-1], last])
    a, b = written(tmp_path / "a", here[:2]), written(tmp_path / "b", [changed, here[2]])
    assert differences(a, b) == [
        "000000000002 is missing",
        f"000000000000 is not in {b}",
        "000000000001 has other numbers",
        "the tables differ",
    ]
