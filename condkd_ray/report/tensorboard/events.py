"""The contents of TensorBoard's event files, as Summary protos, which torch and TensorBoard build if they can.

This module builds the columns of the HParams tab itself: torch and TensorBoard do not mark the columns that `differ`,
torch's `add_hparams` writes a colliding experiment for each trial, and TensorBoard's `summary` imports TensorFlow.
"""

import io
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from torch.utils.tensorboard import summary

from condkd_ray.core.records import Status
from condkd_ray.report.figures.image_grids import PNG

# Protobuf creates the classes of these modules at import, so type checkers do not find them.
_API: Any = api_pb2
_DATA: Any = plugin_data_pb2
_SUMMARY: Any = summary_pb2

Scalar = str | bool | int | float
_MAX_CHOICES = 20
# A pruned trial has not failed and cannot be compared with complete ones; its status in TensorBoard is unknown.
_STATUS: dict[Status, int] = {"finished": _API.STATUS_SUCCESS, "failed": _API.STATUS_FAILURE}


def columns(planned: Sequence[Mapping[str, Scalar]], always: Sequence[str]) -> dict[str, Any]:
    """Return the columns of the HParams tab, HParamInfo by name: those in `always`, then those of the planned trials.

    TensorBoard first shows the columns that differ or that only some trials have, and only five of them initially.
    """
    names = dict.fromkeys([*always, *(name for trial in planned for name in trial)])
    return {name: _column(name, planned) for name in names}


def intervals(ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return float columns, by name, with the given lower and upper bounds."""
    return {
        name: _API.HParamInfo(name=name, type=_API.DATA_TYPE_FLOAT64, differs=True, domain_interval=_interval(bounds))
        for name, bounds in ranges.items()
    }


def experiment(infos: Mapping[str, Any], metrics: Sequence[str]) -> Any:
    """Return the summary that makes a folder an HParams experiment."""
    content = _API.Experiment(
        time_created_secs=time.time(),
        hparam_infos=infos.values(),
        metric_infos=[_API.MetricInfo(name=_API.MetricName(tag=tag), display_name=tag) for tag in metrics],
    )
    return _plugin_summary(metadata.EXPERIMENT_TAG, experiment=content)


def session_start(name: str, hparams: Mapping[str, Scalar], infos: Mapping[str, Any], when: float) -> Any:
    """Return the summary that adds a running trial to the HParams tab. `when`: seconds since 1970."""
    values = {key: _value(value, infos.get(key)) for key, value in hparams.items()}
    return summary_v2.hparams_pb(values, trial_id=name, start_time_secs=when)


def session_end(status: Status, when: float) -> Any:
    """Return the summary that ends a trial. `when`: seconds since 1970."""
    content = _DATA.SessionEndInfo(status=_STATUS.get(status, _API.STATUS_UNKNOWN), end_time_secs=when)
    return _plugin_summary(metadata.SESSION_END_INFO_TAG, session_end_info=content)


def scalars(metrics: Mapping[str, float]) -> Any:
    """Return one summary with a value for each finite metric."""
    values = [
        _SUMMARY.Summary.Value(tag=name, simple_value=float(value))
        for name, value in sorted(metrics.items())
        if name != "round" and math.isfinite(value)
    ]
    return _SUMMARY.Summary(value=values)


def histogram(tag: str, counts: Sequence[int], edges: Sequence[float]) -> Any:
    """Return a summary of `counts` (n) in bins with `edges` (n + 1); each value counts as its bin's middle."""
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    total = sum(n * x for n, x in zip(counts, middles, strict=True))
    squares = sum(n * x * x for n, x in zip(counts, middles, strict=True))
    return summary.histogram_raw(tag, edges[0], edges[-1], sum(counts), total, squares, edges[1:], counts)


def image(tag: str, picture: Image.Image) -> Any:
    """Return a summary with the picture. A grey picture stays grey; torch's function would convert it to RGB."""
    content = io.BytesIO()
    picture.save(content, **PNG)
    shown = _SUMMARY.Summary.Image(
        height=picture.height,
        width=picture.width,
        colorspace=len(picture.getbands()),
        encoded_image_string=content.getvalue(),
    )
    return _SUMMARY.Summary(value=[_SUMMARY.Summary.Value(tag=tag, image=shown)])


def _column(name: str, planned: Sequence[Mapping[str, Scalar]]) -> Any:
    values = [trial[name] for trial in planned if name in trial]
    differs = len({trial.get(name) for trial in planned}) > 1
    info = _API.HParamInfo(name=name, type=_data_type(name, values), differs=differs)
    choices = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(choices) <= _MAX_CHOICES:
        info.domain_discrete.extend(_value(value, info) for value in choices)
    elif info.type == _API.DATA_TYPE_FLOAT64:
        info.domain_interval.CopyFrom(_interval([float(value) for value in values]))
    return info


def _interval(values: Sequence[float]) -> Any:
    return _API.Interval(min_value=min(values), max_value=max(values))


def _data_type(name: str, values: list[Scalar]) -> int:
    if not values:
        return _API.DATA_TYPE_FLOAT64 if name in ("ipc", "seed") else _API.DATA_TYPE_STRING
    if all(isinstance(value, bool) for value in values):
        return _API.DATA_TYPE_BOOL
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return _API.DATA_TYPE_FLOAT64 if numbers else _API.DATA_TYPE_STRING


def _value(value: Scalar, info: Any | None) -> str | bool | float:
    """Return the value in the type of its column, because a column must not mix types."""
    if isinstance(value, str) or (info is not None and info.type == _API.DATA_TYPE_STRING):
        return str(value)
    return value if isinstance(value, bool) else float(value)


def _plugin_summary(tag: str, **content: Any) -> Any:
    data = metadata.create_summary_metadata(_DATA.HParamsPluginData(**content))
    return _SUMMARY.Summary(value=[_SUMMARY.Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])
