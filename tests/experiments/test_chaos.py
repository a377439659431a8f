import math
import sys
from collections import Counter

import chaos
import pytest
import yaml
from chaos import SHARES, Chaos, check_untouched, differences, machine, schedule
from places import EXPERIMENTS
from report.report_factory import altered, make_record, results, sweep

from condkd_ray.core.records import write_record
from condkd_ray.report.tables import arms

SCRIPT = EXPERIMENTS / "ablate_ipc.py"
FLAGS = "--ipcs 1 --seeds 0 --arms none mixed guided --share inversion --teacher-epochs 1 --rounds 12"
SMALL = {
    "condensation": {"name": "random_real"},
    "inversion": {"width": 16, "adv_weight": 0.0},
    "distiller": {"steps": 20},
}


def test_every_kind_is_killed_and_the_seed_decides_when():
    assert {kind for kind, _ in schedule(len(SHARES), seed=3)} == set(SHARES)
    assert len(schedule(2, seed=0)) == 2
    assert schedule(50, seed=0) == schedule(50, seed=0) != schedule(50, seed=1)
    kinds = Counter(kind for kind, _ in schedule(1000, seed=0))
    assert all(abs(kinds[kind] - 50 * share) < 50 for kind, share in SHARES.items())


def test_a_record_lost_or_written_again_is_noticed(tmp_path):
    (tmp_path / "records").mkdir()
    record, seen = tmp_path / "records" / "a.json", {}
    record.write_text("{}")
    check_untouched(tmp_path, seen)
    check_untouched(tmp_path, seen)
    (tmp_path / "b").write_text("{}")
    (tmp_path / "b").rename(record)
    with pytest.raises(AssertionError, match="written twice"):
        check_untouched(tmp_path, seen)
    record.unlink()
    with pytest.raises(AssertionError, match="is lost"):
        check_untouched(tmp_path, seen)


def test_a_command_is_given_again_after_a_kill_of_its_process_alone(tmp_path, monkeypatch):
    out, log, killed, kill = tmp_path / "out", tmp_path / "log.txt", tmp_path / "killed", chaos.kill

    def killing(pid: int) -> None:
        kill(pid)
        killed.touch()

    monkeypatch.setattr(chaos, "kill", killing)
    # It does not end before it was killed once, or half an hour has passed.
    waits = f"while not os.path.exists({str(killed)!r}) and time.monotonic() < until: time.sleep(0.01)"
    program = f"import os, time\nuntil = time.monotonic() + 1800\n{waits}\nprint('done')"
    made = Chaos(None, [("driver", 0.0)], seed=0)
    made.sweep([sys.executable, "-c", program], out, log)
    assert (dict(made.killed), made.plan, log.read_text()) == ({"driver": 1}, [], "done\n")
    with pytest.raises(AssertionError, match="ended with exit code 3; see "):
        made.sweep([sys.executable, "-c", "raise SystemExit(3)"], out, log)


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


@pytest.mark.ray
@pytest.mark.slow
def test_eight_kills_change_no_number(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    flags = [*FLAGS.split(), "--config", str(tmp_path / "small.yaml"), "--cache", str(tmp_path / "cache")]
    with machine() as made:
        command = [sys.executable, str(SCRIPT), *flags, "--address", made.address]
        chaos = Chaos(made, schedule(8, seed=0))
        chaos.soak(command, tmp_path)
    assert not chaos.wrong, chaos
    assert chaos.killed.total() == 8
    assert set(chaos.killed) == set(SHARES)
