"""Agreement of every Raptor with its teacher, beside that of simpler predictions."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from brh_jax import distill
from brh_jax.data.sources import Source
from brh_jax.distill import BASELINES, Classes, ImageErrors, TrajectoryFit
from brh_jax.errors import UserError, expect_positive
from brh_jax.models import Encoder
from brh_jax.statistics import num_groups, summarize
from experiments.data import AllImages, ImageSet
from experiments.interval import Interval, mean_interval, ratio_interval
from experiments.settings import Common
from experiments.stage import Context
from experiments.stages.accuracy.run import Classifier, MeasuringSettings, classifier
from experiments.stages.distill.run import read_blockwise, read_raptors
from experiments.stages.phases.run import read_partitions
from experiments.stages.teacher.run import read_teacher

ALL = "all"  # beside the token types: all tokens of a state together


@dataclasses.dataclass(frozen=True)
class AgreementSettings(MeasuringSettings):
    """What agreement is measured on.

    Attributes:
        more: further sets of images that it is measured on.
        baselines: simpler predictions beside the Raptors, fitted to the teacher's states of training images: some of mean,
            linear, linear_blocks; see brh_jax/distill/baselines.py.
        baseline_images: images that they are fitted to.
    """

    more: tuple[str, ...] = ()
    baselines: tuple[str, ...] = BASELINES
    baseline_images: int = 1000

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "baseline_images")
        for name in self.baselines:
            if name not in BASELINES:
                raise UserError(f"baselines names {name!r}: expected some of {', '.join(BASELINES)}")


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    data: AllImages = AllImages()
    eval: AgreementSettings = AgreementSettings()


@dataclasses.dataclass(frozen=True)
class Edges:
    """The 95 % bootstrap interval of each layer, photographs drawn."""

    low: list[float]
    high: list[float]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well a trajectory is reproduced, a value for each layer's output by token type; see `brh_jax.distill.TrajectoryFit`.

    Attributes:
        label: what the prediction is called.
        raptor: name of the Raptor that it is, was, or whose partition it has; empty for predictions without phases.
        kind: "raptor"; "blockwise", a Raptor before its blocks were joined; "linear blocks"; "baseline".
        r2, cosine: token type -> `[depth]`.
        r2_all: of all tokens together, `[depth]`.
        r2_one_mean: of the last layer, all tokens together, as the paper's authors take it.
        error, relative_error: token type -> `[depth]`, and of all tokens together as "all".
        final_cosine: of [cls, mean patch] after the final norm.
        accuracy: share of the labelled images whose class the teacher's own classifier gives; None where its classes are others.
        same_class: share of images to which it gives the class that it gives on the true last state; None where it has none.
        num_images, num_photographs: images measured, and photographs that they are views of: what intervals draw.
        edges: "error" and "relative_error" -> token type -> interval; empty with a single photograph.
        overall: the same of the mean over layers and images, a figure with its interval.
        teacher_accuracy: of the teacher on the same views.
        kept: accuracy as a share of the teacher's, photographs drawn with what either says of them.
    """

    label: str
    raptor: str
    kind: str
    r2: dict[str, list[float]]
    r2_all: list[float]
    r2_one_mean: float
    cosine: dict[str, list[float]]
    error: dict[str, list[float]]
    relative_error: dict[str, list[float]]
    final_cosine: float
    accuracy: float | None
    same_class: float | None
    num_images: int
    num_photographs: int
    edges: dict[str, dict[str, Edges]]
    overall: dict[str, dict[str, Interval]]
    teacher_accuracy: float | None = None
    kept: Interval | None = None


@dataclasses.dataclass(frozen=True)
class AgreementResult:
    """Agreement by set of images and prediction; the first set is `config.data.eval`."""

    sets: dict[str, dict[str, Fit]]

    @property
    def fits(self) -> dict[str, Fit]:
        """The fits of the first set, by name of the prediction; `identity` repeats the first state."""
        return next(iter(self.sets.values()))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A function from a_0 to a trajectory, and what it is; see `Fit`."""

    label: str
    rollout: Callable
    raptor: str = ""
    kind: str = "baseline"


def reads(settings: Settings) -> list[ImageSet]:
    """What is measured on, and what baselines are fitted to."""
    more = (ImageSet("eval.more", spec, settings.data.data_dir) for spec in settings.eval.more)
    return [*settings.data.named("eval", "train"), *more]


def run(context: Context, settings: Settings) -> AgreementResult:
    """Leaves the errors of every image in `errors.npz`, those of further sets in `errors1.npz` and so on."""
    data = settings.data
    sources = {spec: context.source(spec, data.data_dir) for spec in (data.eval, *settings.eval.more)}
    teacher, train = read_teacher(context, settings.compute_dtype), context.source(data.train, data.data_dir)
    predictions = {"identity": Prediction("first state repeated", distill.repeat_state(teacher.depth))}
    predictions |= dict(_baselines(context, settings, teacher)) | dict(_raptors(context, settings))
    sets = {}
    for number, (spec, source) in enumerate(sources.items()):
        measured = _measure(context, settings, teacher, source, predictions, classifier(teacher, train, source))
        arrays = {f"{name}/{measure}_{t}": v for name, fit in measured.items() for measure, t, v in _per_image(fit.images)}
        context.save_arrays(context.folder / f"errors{number or ''}.npz", **arrays)
        sets[spec] = {name: _fit_result(predictions[name], fit) for name, fit in measured.items()}
    return AgreementResult(sets)


def _raptors(context: Context, settings: Settings) -> Iterator[tuple[str, Prediction]]:
    for name, raptor in read_raptors(context, settings.compute_dtype).items():
        if blockwise := read_blockwise(context, name, settings.compute_dtype):
            yield f"{name}_stage1", Prediction(f"{name}, stage 1", blockwise.rollout, name, "blockwise")
        yield name, Prediction(name, raptor.rollout, name, "raptor")


def _baselines(context: Context, settings: Settings, teacher: Encoder) -> Iterator[tuple[str, Prediction]]:
    """Predictors fitted to the teacher's states of training images."""
    names = settings.eval.baselines
    if not names:
        return
    source = context.source(settings.data.train, settings.data.data_dir)
    batches = _batches(context, settings, teacher, source, settings.eval.baseline_images, "baselines")
    trajectories = ((teacher.trajectory(teacher.normalize_pixels(b["image"])), b["valid"]) for b in batches)
    partitions = {f"k{k}": partition for k, partition in read_partitions(context).items()}
    fitted = distill.fit_baselines(trajectories, teacher.layout, names, partitions=partitions)
    labels = {"mean": "mean state", "linear": "linear maps of a_0"}
    blocks = {f"linear_{name}": name for name in partitions}
    for name, predict in fitted.items():
        if name in blocks:
            yield name, Prediction(f"linear blocks, {blocks[name]}", predict, blocks[name], "linear blocks")
        else:
            yield name, Prediction(labels[name], predict)


def _batches(context: Context, settings: Settings, teacher: Encoder, source: Source, num_images: int, label: str):
    return context.measuring_batches(
        source,
        settings.data.transform(settings.data.eval_augment, teacher.preprocessing),
        num_images=num_images,
        batch_size=settings.eval.batch_size,
        label=label,
        seed=settings.seed,
        threads=settings.data.threads,
    )


def _measure(
    context: Context,
    settings: Settings,
    teacher: Encoder,
    source: Source,
    predictions: dict[str, Prediction],
    own: Classifier,
) -> dict[str, TrajectoryFit]:
    measured = distill.evaluate(
        lambda images: teacher.trajectory(teacher.normalize_pixels(images)),
        {name: prediction.rollout for name, prediction in predictions.items()},
        teacher.features,
        _batches(context, settings, teacher, source, settings.eval.num_images, f"agreement on {source.name}"),
        teacher.layout,
        **own._asdict(),
    )
    for name, fit in measured.items():
        last = ", ".join(f"{t} {r[-1]:.3f}" for t, r in fit.r2._asdict().items() if len(r))
        print(
            f"agreement: {name:<10} R² at the last layer: {last}; mean relative e {fit.relative_error_all.mean():.3f}", flush=True
        )
    return measured


def _per_image(errors: ImageErrors) -> Iterator[tuple[str, str, np.ndarray]]:
    """Measure, token type and `[depth, images]`."""
    for measure in ("error", "relative_error"):
        yield from ((measure, token, v) for token, v in getattr(errors, measure)._asdict().items() if len(v))
        yield measure, ALL, getattr(errors, f"{measure}_all")


def _fit_result(prediction: Prediction, fit: TrajectoryFit) -> Fit:
    def lists(by_token) -> dict[str, list[float]]:
        return {t: np.round(v, 6).tolist() for t, v in by_token._asdict().items() if len(v)}

    edges: dict[str, dict[str, Edges]] = {}
    overall: dict[str, dict[str, Interval]] = {}
    number = num_groups(fit.photographs, fit.num_images)
    for measure, token, values in _per_image(fit.images) if number > 1 else ():
        band = summarize(values, groups=fit.photographs)
        edges.setdefault(measure, {})[token] = Edges(band.low.round(6).tolist(), band.high.round(6).tolist())
        overall.setdefault(measure, {})[token] = mean_interval(values.mean(0), groups=fit.photographs)
    classes = fit.classes
    return Fit(
        prediction.label,
        prediction.raptor,
        prediction.kind,
        lists(fit.r2),
        np.round(fit.r2_all, 6).tolist(),
        fit.r2_one_mean,
        lists(fit.cosine),
        lists(fit.error) | {ALL: np.round(fit.error_all, 6).tolist()},
        lists(fit.relative_error) | {ALL: np.round(fit.relative_error_all, 6).tolist()},
        fit.final_cosine,
        classes.accuracy if classes else None,
        classes.agreement if classes else None,
        fit.num_images,
        number,
        edges,
        overall,
        classes.true_accuracy if classes else None,
        _kept(classes, fit.photographs) if classes else None,
    )


def _kept(classes: Classes, photographs: np.ndarray) -> Interval | None:
    """Accuracy as a share of the teacher's; None without labels, or where the teacher is never right."""
    there = classes.labelled
    right, teachers = ((given == classes.label)[there] for given in (classes.predicted, classes.true))
    return ratio_interval(right, teachers, groups=photographs[there])


def decisions(fits: dict[str, Fit]) -> dict[str, dict[str, float]]:
    """Model -> what the teacher's own classifier says of it, in percent; the teacher among them, none without a classifier."""
    by_model: dict[str, dict[str, float]] = {}
    for name, fit in fits.items():
        if fit.teacher_accuracy is not None:
            by_model["teacher"] = {"own head %": 100 * fit.teacher_accuracy}
        kept = fit.kept.value if fit.kept else None
        said = {"own head %": fit.accuracy, "kept %": kept, "same class %": fit.same_class}
        by_model[name] = {figure: 100 * share for figure, share in said.items() if share is not None}
    return {name: figures for name, figures in by_model.items() if figures}


def merits(result: AgreementResult) -> dict[str, dict[str, float]]:
    """Model -> figure of merit -> value."""
    by_model = {name: dict(figures) for name, figures in decisions(result.fits).items()}
    for name, fit in result.fits.items():
        by_model.setdefault(name, {})
        by_model[name] |= {f"R² {token}": values[-1] for token, values in fit.r2.items()}
        by_model[name] |= {f"cosine {token}": values[-1] for token, values in fit.cosine.items()}
        by_model[name]["relative e"] = float(np.mean(fit.relative_error[ALL]))
    return by_model
