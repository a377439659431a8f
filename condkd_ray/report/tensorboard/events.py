"""TensorBoard events as values: the HParams protos, charts, scalars, histograms and images, put together by hand.

`tensorboard.plugins.hparams.summary` would do, but imports TensorFlow; torch's `add_hparams` writes an experiment of
its own for every trial, and they collide.
"""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from condkd_ray.core.records import Status

# The classes of these modules are made at import from a descriptor, which no type checker sees.
_API: Any = api_pb2
_DATA: Any = plugin_data_pb2
_EVENT: Any = event_pb2
_SUMMARY: Any = summary_pb2
_TENSOR: Any = tensor_pb2
_TYPES: Any = types_pb2

Scalar = str | bool | int | float
_MAX_CHOICES = 20
# A pruned trial neither failed nor can be compared with complete ones: TensorBoard calls that unknown.
_STATUS: dict[Status, int] = {"finished": _API.STATUS_SUCCESS, "failed": _API.STATUS_FAILURE}


def columns(planned: Sequence[Mapping[str, Scalar]], always: Sequence[str]) -> dict[str, Any]:
    """The columns of the HParams tab, HParamInfo by name: `always`, then what the planned trials have beside.

    TensorBoard shows those that differ, or belong to some trials alone, before the others, and only five at first.
    """
    names = dict.fromkeys([*always, *(name for trial in planned for name in trial)])
    infos = {name: _column(name, [trial[name] for trial in planned if name in trial]) for name in names}
    for name, info in infos.items():
        info.differs = len({trial.get(name) for trial in planned}) > 1
    return infos


def intervals(ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Columns of numbers between two bounds."""
    infos = {name: _API.HParamInfo(name=name, type=_API.DATA_TYPE_FLOAT64, differs=True) for name in ranges}
    for name, (low, high) in ranges.items():
        infos[name].domain_interval.min_value, infos[name].domain_interval.max_value = low, high
    return infos


def experiment(infos: Mapping[str, Any], metrics: Sequence[str]) -> Any:
    """The event that makes a folder an HParams experiment."""
    now = time.time()
    content = _API.Experiment(
        time_created_secs=now,
        hparam_infos=infos.values(),
        metric_infos=[_API.MetricInfo(name=_API.MetricName(tag=tag), display_name=tag) for tag in metrics],
    )
    return _plugin_event(metadata.EXPERIMENT_TAG, now, experiment=content)


def session_start(name: str, hparams: Mapping[str, Scalar], infos: Mapping[str, Any], when: float) -> Any:
    """The event that enters a trial, still running, in the HParams tab. `when`: seconds since 1970."""
    content = _DATA.SessionStartInfo(group_name=name, start_time_secs=when)
    for key, value in hparams.items():
        _assign(content.hparams[key], value, infos.get(key))
    return _plugin_event(metadata.SESSION_START_INFO_TAG, when, session_start_info=content)


def session_end(status: Status, when: float) -> Any:
    """The event that ends a trial."""
    content = _DATA.SessionEndInfo(status=_STATUS.get(status, _API.STATUS_UNKNOWN), end_time_secs=when)
    return _plugin_event(metadata.SESSION_END_INFO_TAG, when, session_end_info=content)


def scalars(step: int, metrics: Mapping[str, float], when: float) -> Any:
    """One event with a point for each finite metric."""
    values = [
        _SUMMARY.Summary.Value(tag=name, simple_value=float(value))
        for name, value in sorted(metrics.items())
        if name != "round" and math.isfinite(value)
    ]
    return _EVENT.Event(wall_time=when, step=step, summary=_SUMMARY.Summary(value=values))


def histogram(tag: str, counts: Sequence[int], edges: Sequence[float], step: int, when: float) -> Any:
    """An event with `counts` of the bins between as many `edges` and one more; values count as their bin's middle."""
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    content = _SUMMARY.HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=sum(counts),
        sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
        sum_squares=sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        bucket_limit=edges[1:],
        bucket=counts,
    )
    summary = _SUMMARY.Summary(value=[_SUMMARY.Summary.Value(tag=tag, histo=content)])
    return _EVENT.Event(wall_time=when, step=step, summary=summary)


def image(tag: str, picture: Image.Image, step: int, when: float) -> Any:
    """An event with the picture."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    shown = _SUMMARY.Summary.Image(
        height=picture.height,
        width=picture.width,
        colorspace=len(picture.getbands()),
        encoded_image_string=content.getvalue(),
    )
    summary = _SUMMARY.Summary(value=[_SUMMARY.Summary.Value(tag=tag, image=shown)])
    return _EVENT.Event(wall_time=when, step=step, summary=summary)


def charts(layout: Any, step: int) -> Any:
    """An event with the Layout of the custom scalars. Of several, TensorBoard takes the last."""
    content = _TENSOR.TensorProto(dtype=_TYPES.DT_STRING, string_val=[layout.SerializeToString()])
    about = custom_scalar.create_summary_metadata()
    value = _SUMMARY.Summary.Value(tag=custom_scalar.CONFIG_SUMMARY_TAG, metadata=about, tensor=content)
    return _EVENT.Event(wall_time=time.time(), step=step, summary=_SUMMARY.Summary(value=[value]))


def _column(name: str, values: list[Scalar]) -> Any:
    info = _API.HParamInfo(name=name, type=_data_type(name, values))
    choices = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(choices) <= _MAX_CHOICES:
        for value in choices:
            _assign(info.domain_discrete.values.add(), value, info)
    elif info.type == _API.DATA_TYPE_FLOAT64:
        numbers = [float(value) for value in values]
        info.domain_interval.min_value, info.domain_interval.max_value = min(numbers), max(numbers)
    return info


def _data_type(name: str, values: list[Scalar]) -> int:
    if not values:
        return _API.DATA_TYPE_FLOAT64 if name in ("ipc", "seed") else _API.DATA_TYPE_STRING
    if all(isinstance(value, bool) for value in values):
        return _API.DATA_TYPE_BOOL
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return _API.DATA_TYPE_FLOAT64 if numbers else _API.DATA_TYPE_STRING


def _assign(target: Any, value: Scalar, info: Any | None) -> None:
    """Set a protobuf Value by its column's type, so that a column never mixes types."""
    if isinstance(value, str) or (info is not None and info.type == _API.DATA_TYPE_STRING):
        target.string_value = str(value)
    elif isinstance(value, bool):
        target.bool_value = value
    else:
        target.number_value = float(value)


def _plugin_event(tag: str, when: float, **content: Any) -> Any:
    data = metadata.create_summary_metadata(_DATA.HParamsPluginData(**content))
    value = _SUMMARY.Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)
    return _EVENT.Event(wall_time=when, summary=_SUMMARY.Summary(value=[value]))
