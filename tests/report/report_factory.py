"""Synthetic records with clearly seeded numbers. Nothing here was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from condkd_ray.core.records import Manifest, Record, flat, unflat
from condkd_ray.report.results import Results

CLASSES, IMAGES, ROUNDS = 10, 400, 4
LABELS = np.random.default_rng(7).integers(0, CLASSES, IMAGES)
LEVEL = {"none": 0.60, "condensed_only": 0.40, "mixed": 0.66, "guided": 0.72, "guided_only": 0.63, "real": 0.93,
         "mixed_prior": 0.68}  # fmt: skip
SLOPE = {"condensed_only": 0.03, "mixed": 0.008, "guided": 0.007, "guided_only": 0.004, "mixed_prior": 0.008}
OLDER = tuple(arm for arm in LEVEL if arm != "mixed_prior")
"""The arms of records from before mixed_prior existed."""
WITHOUT_IPC = ("none", "real")


def make_record(arm: str = "guided", ipc: int = 10, seed: int = 0, **changes: Any) -> Record:
    """Return a finished trial whose numbers depend only on (arm, ipc, seed)."""
    rng = np.random.default_rng([list(LEVEL).index(arm) if arm in LEVEL else 99, ipc, seed])
    shared = np.random.default_rng([1000, seed]).normal(0, 0.008)
    chance = np.clip(LEVEL.get(arm, 0.5) + SLOPE.get(arm, 0.0) * ipc + shared + rng.normal(0, 0.006), 0, 1)
    wrong = (LABELS + rng.integers(1, CLASSES, IMAGES)) % CLASSES
    predictions = np.where(rng.random(IMAGES) < chance, LABELS, wrong)
    accuracy = float((predictions == LABELS).mean())
    curve = accuracy * (1 - 0.5 ** np.arange(1, ROUNDS + 1)) / (1 - 0.5**ROUNDS)
    curve[-1] = accuracy
    fields: dict[str, Any] = {
        "experiment": "ablation", "arm": arm, "ipc": ipc, "seed": seed, "dataset": "digits", "teacher": "lenet",
        "student": "lenet_half", "condensation": "random_real" if ipc else "none", "inversion": "dafl",
        "guidance": "moments" if arm.startswith("guided") else "none", "memory": "growing", "status": "finished",
        "config": {"arm": arm, "seed": seed, "guidance": {"weight": 1.0 if arm.startswith("guided") else 0.0}},
        "config_hash": f"{list(LEVEL).index(arm) if arm in LEVEL else 15:x}{ipc:03d}{seed:04d}0123456789",
        "proxy_hash": f"proxy{ipc}", "versions": {"torch": "2.15.0"}, "node": "node", "threads": 1,
        "peak_bytes": 1 << 28,
        "metrics": {
            "student/test_accuracy": accuracy, "student/test_accuracy_mean": float(curve.mean()),
            "student/val_accuracy": accuracy + 0.01, "proxy/agreement": accuracy + float(rng.normal(0, 0.02)),
            "proxy/kl": 1 - accuracy, "time/inversion_seconds": 7.0, "memory/bytes": 4096.0,
            "time/wall_seconds": 12.5, "time/cpu_seconds": 10.0 + seed,
        },
        "history": [
            {"round": i + 1.0, "student/test_accuracy": float(value), "kd/loss": 1 / (i + 1), "time/wall_seconds": 1.5}
            for i, value in enumerate(curve)
        ],
        "predictions": predictions.tolist(),
    }  # fmt: skip
    return unflat(fields | changes)


def altered(record: Record, **changes: Any) -> Record:
    """Return the record with changed values, of its own or of its outcome."""
    return unflat(flat(record) | changes)


PLACES = {"frechet_real": 0.8, "frechet_condensed": 0.9, "mmd_real": 1.1, "mmd_condensed": 1.2, "diversity": 0.7,
          "coverage": 0.6, "nearest_guide": 1.3, "confidence": 0.95, "gap": 0.4}  # fmt: skip


def diagnosed(record: Record) -> Record:
    """Return the trial with a diagnosis in each round and as metrics.

    Without condensed images, the values that need them are missing.
    """
    known = {name: value for name, value in PLACES.items()
             if record.ipc or not name.endswith(("condensed", "coverage", "guide"))}  # fmt: skip
    rng = np.random.default_rng([record.seed, record.ipc, *record.arm.encode()])
    place = rng.normal(1, 0.2)
    rows = [{f"diagnosis/{name}": float(value * place * (1 + 1 / row["round"]) + rng.normal(0, 0.02))
             for name, value in known.items()} for row in record.history]  # fmt: skip
    history = [row | more for row, more in zip(record.history, rows, strict=True)]
    return altered(record, history=history, metrics=record.metrics | rows[-1])


def remembering(record: Record) -> Record:
    """Return the trial with the content of its memory, which has more samples of each class than of the one before."""
    rng = np.random.default_rng([record.seed, *record.arm.encode()])
    confidence = rng.multinomial(1045, np.arange(1, 21) / 210).tolist()
    return altered(record, held={"class": (100 + np.arange(CLASSES)).tolist(), "confidence": confidence})


def sweep(
    arms: Sequence[str] = OLDER, ipcs: Sequence[int] = (1, 5, 10), seeds: Sequence[int] = range(5)
) -> list[Record]:
    """Return every arm at every IPC and seed; arms without condensed images once for each seed."""
    return [
        make_record(arm, ipc, seed) for arm in arms for ipc in ((0,) if arm in WITHOUT_IPC else ipcs) for seed in seeds
    ]


def results(records: Sequence[Record] = (), manifest: Manifest | None = None, out: Path = Path("out")) -> Results:
    """Return results of these trials with this manifest, or with one that plans exactly them."""
    return Results(out, manifest or make_manifest(records), records, records)


def make_manifest(records: Sequence[Record] = (), **changes: Any) -> Manifest:
    """Return a manifest that plans exactly these records."""
    fields: dict[str, Any] = {
        "experiment": "ablation",
        "question": "Do condensed images help data-free distillation?",
        "command": "condkd ablation --out runs/ablation",
        "created": "2026-01-01T00:00:00+00:00",
        "planned": [{"arm": r.arm, "ipc": r.ipc, "seed": r.seed, "config_hash": r.config_hash} for r in records],
        "teacher": {"label": "lenet", "hash": "t", "test_accuracy": 0.9722, "val_accuracy": 0.98},
        "dataset": {"name": "digits", "hash": "d", "num_classes": CLASSES, "image_shape": [1, 8, 8],
                    "test_size": IMAGES, "notes": []},
        "test_labels": LABELS.tolist(),
        "notes": ["Synthetic numbers."],
    }  # fmt: skip
    return Manifest(**fields | changes)


SCENE = ("sky", "road", "car", "sign post", "pedestrian")
"""Classes of the synthetic segmentation; no test image has a pixel of the last."""
SHARES = dict(zip(SCENE, (0.4, 0.45, 0.1, 0.05, 0.0), strict=True))
SCENE_ARMS = ("none", "mixed", "guided")


def make_scene(arm: str = "guided", ipc: int = 5, seed: int = 0, **changes: Any) -> Record:
    """Return a finished trial of a segmentation whose numbers depend only on (arm, ipc, seed)."""
    rng = np.random.default_rng([SCENE_ARMS.index(arm), ipc, seed])
    ious = np.array([0.8, 0.75, 0.3, 0.1]) + 0.05 * SCENE_ARMS.index(arm) + rng.normal(0, 0.01, 4)
    miou = float(ious.mean())
    curve = miou * (1 - 0.5 ** np.arange(1, ROUNDS + 1)) / (1 - 0.5**ROUNDS)
    metrics = {
        "student/test_miou": miou, "student/test_miou_mean": float(curve.mean()), "student/val_miou": miou - 0.02,
        "student/test_miou_variance": float(curve.var()), "student/test_miou_best": miou, "student/forgetting": 0.0,
        "student/test_rounds": float(ROUNDS), "student/test_images": 60.0,
        "proxy/agreement": miou + float(rng.normal(0, 0.02)), "proxy/kl": 1 - miou, "memory/bytes": 4096.0,
        "time/inversion_seconds": 7.0, "time/wall_seconds": 12.5, "time/cpu_seconds": 10.0 + seed,
    }  # fmt: skip
    metrics |= dict(zip((f"student/test_iou/{name}" for name in SCENE), [*map(float, ious), np.nan], strict=True))
    history = [
        {"round": i + 1.0, "student/test_miou": float(value), "student/val_miou": float(value) - 0.02, "kd/loss": 1.0}
        for i, value in enumerate(curve)
    ]
    about = {"dataset": "scenes", "teacher": "deeplab-8", "student": "deeplab-4", "predictions": []}
    return make_record(arm, ipc, seed, **about, metrics=metrics, history=history, **changes)


def scenes(seeds: Sequence[int] = range(3)) -> list[Record]:
    """Return each arm of a segmentation at each seed; `none` without condensed images."""
    return [make_scene(arm, 0 if arm == "none" else 5, seed) for arm in SCENE_ARMS for seed in seeds]


def scenes_manifest(**changes: Any) -> dict[str, Any]:
    """Return what the manifest of a segmentation has in place of that of a classification."""
    dataset = {"name": "scenes", "hash": "s", "num_classes": len(SCENE), "image_shape": [3, 72, 96], "test_size": 60,
               "notes": [], "task": "segmentation", "class_names": list(SCENE), "pixel_shares": SHARES}  # fmt: skip
    ious = dict(zip(SCENE, (0.95, 0.9, 0.6, 0.3, None), strict=True))
    teacher = {"label": "deeplab-8", "hash": "t", "test_miou": 0.6875, "val_miou": 0.7, "test_iou": ious}
    return {"dataset": dataset, "teacher": teacher, "test_labels": []} | changes
