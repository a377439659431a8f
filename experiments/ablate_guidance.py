"""Which guidance helps: its form, the teacher's layers, the alignment, the augmentation, the weight, the share?

Runs every combination of the given values, and `none` and, at each share, `mixed` and `mixed_prior`. Every form has
the class prior of `mixed_prior` and is compared with it. By default only form and weight vary.

    python experiments/ablate_guidance.py --forms moments gaussian --stages 0 2 --alignments class marginal
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run

Form = Literal["projection", "auxiliary", "per_class", "unconditional", "hinge", "mmd", "moments", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones."""

    ipcs: tuple[int, ...] = (10,)
    forms: tuple[Form, ...] = ("projection", "auxiliary", "per_class", "unconditional", "mmd", "moments", "gaussian")
    layers: tuple[str, ...] = ("penultimate",)
    stages: tuple[int, ...] = (0,)
    alignments: tuple[Literal["class", "marginal"], ...] = ("class",)
    augments: tuple[Literal["host", "condensed", "dsa"], ...] = ("host",)
    weights: tuple[float, ...] = (0.1, 1.0)
    """Factors on each form's own default weight."""
    shares: tuple[float, ...] = (0.5,)
    """Shares of condensed images in the student's batches, for guided and mixed alike."""
    out: Path = Path("runs/ablate_guidance")


def plans(args: Args) -> Plans:
    """Yield every trial; an arm's name contains the values that vary."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.methods.guidance import FORMS

    base, (first, *others) = args.base(), args.shares
    yield from (arm(base, "none", 0, seed) for seed in args.seeds)
    for share, ipc, seed in product(args.shares, args.ipcs, args.seeds):
        mixing = replace(base, distiller=replace(base.distiller, condensed_share=share))
        tail = f" share {share:g}" if others else ""
        for name in args.mixing[:-1]:
            yield arm(mixing, name, ipc, seed, f"{name}{tail}" if share != first else name, prior=args.prior)
        sweep = args.layers, args.stages, args.alignments, args.augments, args.weights
        for form, layer, stages, alignment, augment, weight in product(args.forms, *sweep):
            compared = {"layer": layer, "stages": stages, "alignment": alignment, "augment": augment}
            guidance = replace(FORMS[form], **compared, weight=weight * FORMS[form].weight)
            names = f" {layer}", f" {stages} stages", f" {alignment}", f" {augment}", f" x{weight:g}"
            texts = zip(names, sweep, strict=True)
            label = form + "".join(text for text, values in texts if len(values) > 1) + tail
            yield arm(replace(mixing, guidance=guidance), "guided", ipc, seed, label, prior=args.prior)


if __name__ == "__main__":
    command_line(Args, lambda a: run("ablate_guidance", __doc__ or "", plans(a), a, baseline=a.mixing[-2]))
