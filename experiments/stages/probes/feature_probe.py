"""k-NN and logistic regression on [cls, mean patch], which need no training of ours."""

import dataclasses

from brh_jax.errors import expect, expect_positive
from brh_jax.models import Encoder
from brh_jax.probes.feature_probe import knn_predict, logistic_predict
from experiments.interval import Interval, mean_interval
from experiments.stage import Context
from experiments.stages.probes.choice import Choice, LabelledImages, ProbeSets, SharedSettings, check_candidates
from experiments.stages.probes.features import classes_without_images, open_labelled, read_features


@dataclasses.dataclass(frozen=True)
class FeatureProbeSettings(LabelledImages):
    """k-NN and logistic regression on [cls, mean patch] of labelled images, centre crops.

    Attributes:
        neighbours: numbers of neighbours that vote.
        temperature: of the votes' weights.
        strengths: C of logistic regression, chosen on the held-out part of the training set.
    """

    neighbours: tuple[int, ...] = (20,)
    temperature: float = 0.07
    strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "temperature")
        some = bool(self.neighbours) and all(number > 0 for number in self.neighbours)
        expect(some, "neighbours", self.neighbours, "positive numbers such as (5, 20)")
        expect(bool(self.strengths), "strengths", self.strengths, "positive numbers such as (0.1, 1.0)")
        check_candidates("strengths", self.strengths)


@dataclasses.dataclass(frozen=True)
class FeatureProbe:
    """The accuracies of a model.

    Attributes:
        nearest: number of neighbours -> accuracy of their vote.
        logistic: accuracy of logistic regression.
        strength: that it was fitted with.
    """

    nearest: dict[int, Interval]
    logistic: Interval
    strength: Choice


@dataclasses.dataclass(frozen=True)
class FeatureProbeResult(ProbeSets):
    """k-NN and logistic regression.

    Attributes:
        classes_without_images: in the training set.
        models: by model.
    """

    classes_without_images: list[str]
    models: dict[str, FeatureProbe]


def run(context: Context, settings: SharedSettings, own: FeatureProbeSettings, models: dict[str, Encoder]) -> FeatureProbeResult:
    """Measures every model."""
    train, test = open_labelled(context, settings, "feature_probe", own)
    probes = {}
    for name, encoder in models.items():
        label = f"feature probe {name}"
        values, labels, _ = read_features(context, settings, encoder, train, own.num_train, f"{label}: training set")
        queries, truth, views = read_features(context, settings, encoder, test, own.num_eval, f"{label}: test set")
        voted = knn_predict(values, labels, queries, len(train.classes), own.neighbours, temperature=own.temperature)
        fitted, strength, scores = logistic_predict(
            values, labels, queries, strengths=own.strengths, held_out=own.held_out, seed=settings.seed
        )
        nearest = {k: mean_interval(predicted == truth, groups=views) for k, predicted in voted.items()}
        probe = probes[name] = FeatureProbe(nearest, mean_interval(fitted == truth, groups=views), Choice(strength, scores))
        votes = ", ".join(f"{k}-NN {one.value:.4f}" for k, one in nearest.items())
        print(f"feature probe: {name}: {votes}, logistic {probe.logistic.value:.4f}", flush=True)
    empty = classes_without_images(train, labels)
    return FeatureProbeResult(train.name, test.name, len(labels), len(truth), empty, probes)
