"""Linear depth on [patch, cls]."""

import dataclasses
from collections.abc import Iterator

from brh_jax.data.dense import check_depths
from brh_jax.data.transforms import Resize
from brh_jax.models import Encoder
from brh_jax.probes import depth as probe
from brh_jax.probes.depth import DepthScores, DepthSettings
from brh_jax.train.loop import Run
from experiments.interval import Interval
from experiments.stage import Context
from experiments.stages.probes.choice import Choice, ProbeSets, SharedSettings
from experiments.stages.probes.dense import DenseProbe, Head, Task, run_task


@dataclasses.dataclass(frozen=True)
class DepthProbeSettings(DenseProbe, DepthSettings):
    """Linear depth on [patch, cls].

    Attributes:
        train, eval: tfds:nyu_depth_v2:train (about 50,000 images, what the paper's probe is trained on), nyu:PATH:test (or
            :train, 795 images) or depths:PATH (images/ and depth/); both empty for no such probe.
    """

    def __post_init__(self):
        DenseProbe.__post_init__(self)
        DepthSettings.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class DepthProbe:
    """The scores of a model; see `brh_jax.probes.depth.DepthScores`.

    Attributes:
        rmse: root of the mean squared error in metres over all images' pixels together, as the paper has it.
        rmse_per_image: of each image, mean over images.
        abs_rel: mean of |error| / truth.
        delta1: share of pixels within a factor of 1.25.
        num_without: further images, which had no valid ground truth.
        learning_rate: that it was trained with.
    """

    rmse: Interval
    rmse_per_image: Interval
    abs_rel: float
    delta1: float
    num_without: int
    learning_rate: Choice


@dataclasses.dataclass(frozen=True)
class DepthResult(ProbeSets):
    """Linear depth, by model.

    Attributes:
        recipe: that the probes were trained by.
    """

    recipe: str
    models: dict[str, DepthProbe]


def run(context: Context, settings: SharedSettings, own: DepthProbeSettings, models: dict[str, Encoder]) -> DepthResult:
    """Trains and measures a probe of every model; leaves some predictions in `depth/examples.npz`."""
    train, test = (context.source(spec, settings.data.data_dir, kind="depths") for spec in (own.train, own.eval))
    for name, source in (("train", train), ("eval", test)):
        check_depths(source, own.min_depth, own.max_depth, f"config.depth.{name}")

    def fit(encoder: Encoder, batches: Iterator, num_steps: int, settings: DepthProbeSettings, run: Run) -> Head:
        return probe.train_depth(encoder, batches, num_steps, settings, run, batch_size=settings.batch_size), None

    task = Task(
        "depth",
        own,
        train,
        test,
        crop=lambda encoder: own.crop(),
        resize=lambda e: Resize(own.eval_size, e.preprocessing.interpolation),
        fit=fit,
        predictor=lambda encoder: probe.predictor(encoder, own),
        measure=lambda predict, batches: probe.evaluate_depth(predict, own, batches),
        merit=lambda scores: -scores.rmse,
        text=lambda s: f"RMSE {s.rmse:.4f} m, relative {s.abs_rel:.4f}, within 1.25 {s.delta1:.4f}, {s.num_images} images",
    )
    scored, num_train, _ = run_task(context, settings, task, models)
    num_eval = next(iter(scored.values()))[0].num_images
    results = {name: _result(*found) for name, found in scored.items()}
    return DepthResult(train.name, test.name, num_train, num_eval, own.recipe, results)


def _result(scores: DepthScores, rate: Choice) -> DepthProbe:
    pooled = Interval(scores.rmse, scores.low, scores.high)
    each = Interval(scores.rmse_per_image, scores.per_image_low, scores.per_image_high)
    return DepthProbe(pooled, each, scores.abs_rel, scores.delta1, scores.num_without, rate)
