"""Probes on the teacher and on every Raptor: linear classification, segmentation and depth, k-NN and logistic regression."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from experiments.data import ImageSet
from experiments.stage import Context
from experiments.stages.distill.run import read_models
from experiments.stages.probes import depth, feature_probe, linear, segmentation
from experiments.stages.probes.choice import SharedSettings
from experiments.stages.probes.depth import DepthProbeSettings, DepthResult
from experiments.stages.probes.feature_probe import FeatureProbeResult, FeatureProbeSettings
from experiments.stages.probes.linear import LinearProbeSettings, LinearResult
from experiments.stages.probes.segmentation import SegmentationProbeSettings, SegmentationResult


@dataclasses.dataclass(frozen=True)
class Settings(SharedSettings):
    """Sections that the stage uses."""

    probe: LinearProbeSettings = LinearProbeSettings()
    segmentation: SegmentationProbeSettings = SegmentationProbeSettings()
    depth: DepthProbeSettings = DepthProbeSettings()
    feature_probe: FeatureProbeSettings = FeatureProbeSettings()


@dataclasses.dataclass(frozen=True)
class ProbesResult:
    """Scores of each probe; None for one whose section names no training set.

    Attributes:
        linear: of `config.probe`.
        segmentation, depth, feature_probe: of the sections of that name.
    """

    linear: LinearResult | None = None
    segmentation: SegmentationResult | None = None
    depth: DepthResult | None = None
    feature_probe: FeatureProbeResult | None = None


def run(context: Context, settings: Settings) -> ProbesResult:
    """Leaves linear probes in `MODEL/`, segmentation and depth in folders of their own."""
    if not any(own.train for own in (settings.probe, settings.segmentation, settings.depth, settings.feature_probe)):
        print("probes: config.probe, .segmentation, .depth and .feature_probe name no training set, nothing to do", flush=True)
        return ProbesResult()
    models = read_models(context, settings.compute_dtype)

    def done(probe, own):
        return probe.run(context, settings, own, models) if own.train else None

    return ProbesResult(
        linear=done(linear, settings.probe),
        segmentation=done(segmentation, settings.segmentation),
        depth=done(depth, settings.depth),
        feature_probe=done(feature_probe, settings.feature_probe),
    )


def reads(settings: Settings) -> Iterator[ImageSet]:
    """What each probe is trained and tested on."""
    masks = (("num_classes", settings.segmentation.num_classes),)
    for section, kind, options in (
        ("probe", "images", ()),
        ("feature_probe", "images", ()),
        ("segmentation", "masks", masks),
        ("depth", "depths", ()),
    ):
        own, labelled = getattr(settings, section), kind == "images"
        otherwise = f"leave config.{section}.train and .eval empty for no such probe"
        for name in ("train", "eval") if own.train else ():
            yield ImageSet(f"{section}.{name}", getattr(own, name), settings.data.data_dir, kind, labelled, options, otherwise)


def ready(settings: Settings) -> None:
    """Raises UserError where something that the stage reads from outside the run is not there."""
    linear.check_head(settings.probe)


def trained_with(settings: dict[str, Any]) -> set[str]:
    """Settings that the heads which are there were trained with."""
    names = {name: name.split(".") for name in settings if name.count(".") == 1}
    there = {section for section in ("probe", "segmentation", "depth") if settings.get(f"{section}.train")}
    return {name for name, (section, field) in names.items() if section in there and field not in ("eval", "num_eval")}


def merits(result: ProbesResult) -> dict[str, dict[str, float]]:
    """Model -> figure of merit -> value."""
    by_model: dict[str, dict[str, float]] = {}
    for name, probe in result.linear.models.items() if result.linear else ():
        by_model[name] = {"probe %": 100 * probe.accuracy.value}
        if probe.accuracy_of_given_head is not None:
            by_model[name]["head as it is %"] = 100 * probe.accuracy_of_given_head
        by_model[name]["top-1 %"] = 100 * probe.accuracy.value
    for name, masks in result.segmentation.models.items() if result.segmentation else ():
        by_model.setdefault(name, {})["mIoU %"] = 100 * masks.miou.value
    for name, metres in result.depth.models.items() if result.depth else ():
        by_model.setdefault(name, {})["RMSE"] = metres.rmse.value
        by_model[name]["RMSE per image"] = metres.rmse_per_image.value
    return by_model
