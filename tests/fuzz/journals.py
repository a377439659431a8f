"""Journals of a search as Optuna writes them, and with damage from killed processes, full disks and editors."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st

from condkd_ray.study.objective import Objective
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import Study

TREE = parse("""
data: {name: digits}
inversion: {name: fast, bn_weight: !log_uniform [0.1, 100], steps: !int [2, 10]}
guidance: !choice [none, {name: discriminator, weight: !uniform [1, 10]}]
condensation: {name: random_real, ipc: 1}
""")
POINTS = [{"inversion/bn_weight": 2.0}, {"guidance/name": "discriminator", "guidance/weight": 3.0}]
GARBAGE = [b"", b"{", b"\0" * 60, b"\xff\xfe", b"[1]", b"{}", b'{"op_code":4}', b"null", b"my notes", b"[" * 5000, b"3"]


def study_in(folder: Path) -> Study:
    """Open the study of a folder as a search does."""
    return Study(open_storage(None, folder), "search", TREE, Objective(("proxy/agreement",)), sampler="random")


def complete(study: Study) -> dict[int, tuple[dict[str, Any], list[float]]]:
    """Return parameters and values of complete trials, by their numbers."""
    return {trial.number: (trial.params, trial.values) for trial in study.ranked}


@dataclass(frozen=True)
class Given:
    """Content of a journal; `sound`: a search must continue from it; `changed`: bytes may differ from the original."""

    content: bytes
    sound: bool
    changed: bool = False


@cache
def whole() -> tuple[list[bytes], dict[int, tuple[dict[str, Any], list[float]]]]:
    """Return the lines of a journal and its complete trials.

    The journal has suggested points, other trials, one that failed and one that runs.
    """
    with TemporaryDirectory() as folder:
        study = study_in(Path(folder))
        study.suggest_first(POINTS)
        for number in range(6):
            proposal = study.propose()
            assert proposal is not None
            study.note(proposal.number, {"config_hash": f"hash{number}"})
            study.report(proposal.number, 1, number / 10)
            study.fail(number, "broken") if number == 3 else study.complete(number, [number / 10])
        study.propose()
        return (Path(folder) / "study.journal").read_bytes().splitlines(keepends=True), complete(study)


@st.composite
def journals(draw: st.DrawFn) -> Given:
    """A journal; half of them are cut off at some place and perhaps torn there, which must not stop a search."""
    lines = whole()[0]
    content = b"".join(lines)
    if draw(st.booleans()):
        end = content[: draw(st.integers(0, len(content)))]
        return Given(end + draw(st.sampled_from([b"", b"", b"\0" * 700])) * bool(end), sound=True)
    way, place = draw(st.integers(0, 6)), draw(st.integers(0, len(lines) - 1))
    if way < 5:
        other = draw(st.integers(0, len(lines) - 1))
        garbage = draw(st.sampled_from(GARBAGE)) + draw(st.sampled_from([b"", b"\n"]))
        rearranged = [
            lines[:place] + lines[place + 1 :],
            lines[:place] + lines[other:],
            [*lines[: place + 1], *lines[place:]],
            [*lines[:place], garbage, *lines[place:]],
            [*lines[:place], lines[place][: draw(st.integers(0, 200))], *lines[place + 1 :]],
        ][way]
        return Given(b"".join(rearranged), sound=False)
    if way == 5:
        return Given(draw(st.one_of(st.binary(max_size=60), st.sampled_from(GARBAGE))), sound=False, changed=True)
    line = bytearray(lines[place])
    for _ in range(draw(st.integers(1, 3))):
        line[draw(st.integers(0, len(line) - 1))] = draw(
            st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789-".ax'))
        )
    return Given(b"".join([*lines[:place], bytes(line), *lines[place + 1 :]]), sound=False, changed=True)
