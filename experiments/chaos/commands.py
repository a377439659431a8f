"""The experiments that faults disturb: a standard ablation and a small search, on digits.

The ablation's inversion does not use the student, and trials with equal images share them, so that faults also hit
trials that make images for others. The search samples at random, because a learning sampler's proposals depend on which
trials have ended.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ABLATION = "--ipcs 1 --condensation random_real --teacher-epochs 5 --arms none mixed guided --share inversion"
NO_STUDENT = "inversion: {adv_weight: 0}"
TINY = """
condensation: {name: random_real}
inversion: {width: 16, adv_weight: 0}
distiller: {steps: 20}
"""
SPACE = """
data: {name: digits}
teacher: {network: {name: resnet, depth: 8, width: 8}, training: {epochs: 4}}
student: {name: resnet, depth: 8, width: 4}
condensation: {name: random_real, ipc: 2}
inversion: {name: fast, steps: 5, batch: 64, width: 16, bn_weight: !log_uniform [0.1, 100]}
guidance: !choice
  - {name: discriminator, weight: !log_uniform [1, 100]}
  - none
distiller: {steps: 20, batch: 64, condensed_share: 0.5}
"""
SCRIPT = Path(__file__).parents[1] / "ablate_ipc.py"


def commands(folder: Path, *, rounds: int, trials: int, tiny: bool) -> dict[str, Sequence[str]]:
    """Return both commands by name, without `--out` and `--address`; their input files are written into `folder`.

    `rounds`: per trial; `trials`: of the search. A `tiny` ablation has one seed and few steps.
    """
    config, space = folder / "config.yaml", folder / "space.yaml"
    config.write_text(TINY if tiny else NO_STUDENT, encoding="utf-8")
    space.write_text(f"{SPACE}rounds: {rounds}\n", encoding="utf-8")
    seeds = ["--seeds", "0"] if tiny else ["--seeds", "0", "1"]
    ablation = [str(SCRIPT), *ABLATION.split(), *seeds, "--rounds", str(rounds), "--config", str(config)]
    search = ["-m", "condkd_ray", "search", str(space), "--trials", str(trials), "--sampler", "random"]
    common = ["--cache", str(folder / "cache")]
    return {"ablation": [sys.executable, *ablation, *common], "search": [sys.executable, *search, *common]}
