"""The cards say what results hold, and of a disappointing one that it is."""

import dataclasses
import pathlib
import sys

import pytest

from brh_jax.train.metrics import MetricsFile
from experiments.interval import Interval
from experiments.results import Results
from experiments.stages.phases.run import RandomComparison, RandomWeights
from experiments.verdict import answer, cards, in_short

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import made_up

KEPT = {"k2": Interval(0.8, 0.7, 0.9), "mean": Interval(0.1, 0.0, 0.2)}


def results(r2, baseline=0.5, kept=KEPT, rank=1.0, contrast=0.1, about=()):
    phases = made_up.phases(2, matched_contrast=contrast)
    weights = RandomWeights(0.4, 0.1, 0.3, 0.45, 9)
    phases = dataclasses.replace(phases, random=[RandomComparison(2, 0.5, rank, weights, weights)])
    fits = [
        dataclasses.replace(made_up.fit(name, {"cls": [0.1, last]}, [0.3, 0.5], kind=kind), kept=kept.get(name))
        for name, last, kind in (("mean", baseline, "baseline"), ("k2_stage1", 9.0, "blockwise"), ("k2", r2, "raptor"))
    ]
    return Results(
        {
            "teacher": made_up.teacher(),
            "phases": phases,
            "distill": made_up.distilled("k2", 2),
            "agreement": made_up.agreement(*fits),
            "probes": made_up.probed({"teacher": 0.9, "k2": 0.7}),
        },
        dict(about),
    )


def card(found, title, workdir=pathlib.Path("nowhere")):
    return next(one for one in cards(workdir, found) if one.title == title)


def test_a_raptor_above_the_baselines():
    found = card(results(0.8), "Raptor k2")
    assert (found.finding, found.poor) == ("R² 0.70 at the last layer, keeps 80 % of the accuracy", False)
    assert found.verdict == "Above every baseline; the best is mean (0.40)."
    facts = dict(found.facts)
    assert facts["Accuracy kept"] == "80.0 % [70.0, 90.0] of the teacher's"
    assert facts["Best baseline"] == "10.0 % [0.0, 20.0] kept by mean"
    assert facts["Linear probe"] == "70.0 % [70.0, 70.0]; the teacher's 90.0 % [90.0, 90.0]"
    assert found.table.columns == ["R²", "cls", "all"]
    assert found.table.rows[2:] == [["last layer", "0.80", "0.70"], ["best baseline", "0.50", "0.40"]]


def test_the_answer_in_a_sentence():
    [said] = in_short(results(0.8))
    assert said.endswith("keeps 80.0 % [70.0, 90.0] of its accuracy and reproduces 0.70 of the variance of the last state.")
    [said] = in_short(results(-0.4, kept={}))
    assert said.endswith("block parameters, reproduces nothing (R² -0.50) of the last state.")
    assert not list(in_short(Results({"teacher": made_up.teacher()})))


def test_baselines_that_keep_nothing():
    nothing = dict(card(results(0.8, kept=KEPT | {"mean": Interval(0.0, 0.0, 0.0)}), "Raptor k2").facts)
    assert nothing["Best baseline"] == "none keeps any of it"


@pytest.mark.parametrize(
    ("r2", "kept", "said"),
    [
        (0.0, KEPT, "Below the mean state"),
        (0.4, KEPT, "Below the best baseline, mean (0.40)."),
        (0.8, KEPT | {"mean": Interval(0.9, 0.8, 1.0)}, "It keeps less of the accuracy than mean."),
    ],
)
def test_a_disappointing_raptor_is_called_so(r2, kept, said):
    found = card(results(r2, kept=kept), "Raptor k2")
    assert found.poor and said in found.verdict


@pytest.mark.parametrize(
    ("rank", "contrast", "poor", "said"),
    [
        (1.0, 0.1, False, "Holds on other images"),
        (0.5, 0.1, True, "Does not hold on other images: cut from half of them, it is no lighter than 50 % of cuts"),
        (1.0, -0.1, True, "no more alike than others that lie as far apart"),
    ],
)
def test_phases_beside_chance_and_mere_distance(rank, contrast, poor, said):
    found = card(results(0.8, rank=rank, contrast=contrast), "Phases, k = 2")
    assert found.poor == poor and said in found.verdict and found.finding == "1 | 2"
    assert dict(found.facts)["Random cuts"] == "40.0 %, 95 % of them from 30.0 % to 45.0 %"


def test_random_partitions_are_measured_by_random_ones():
    found = results(0.8)
    found.stages["phases"] = dataclasses.replace(found.stages["phases"], method="random_contiguous")
    assert card(found, "Phases, k = 2").verdict.startswith("Heavier than 97.5 % of random contiguous cuts.")


def test_cost_counts_the_images_of_all_trainings(tmp_path):
    found = results(0.8, about={"config": {"distill": {"batch_size": 8}}, "seconds": {"distill": 90.0, "phases": 30.0}}.items())
    raptor = found.stages["distill"].raptors["k2"]
    found.stages["distill"].raptors["k2"] = dataclasses.replace(raptor, trainings={"one": "k2/stage1", "two": "k2/stage2"})
    for folder, steps in (("k2/stage1", 100), ("k2/stage2", 50)):
        rows = MetricsFile(tmp_path / "distill" / folder / "metrics.jsonl")
        rows.write(steps, {"loss": 1.0})
        rows.close()
    cost = card(found, "Cost", tmp_path)
    assert cost.table.rows[1][-1] == "1,200" and dict(cost.facts) == {"Distillation": "1.5 minutes", "All stages": "2.0 minutes"}


def test_what_is_not_there_has_no_card():
    assert [one.title for one in cards(pathlib.Path("nowhere"), Results({"phases": made_up.phases(2)}))] == ["Phases, k = 2"]
    empty = answer(pathlib.Path("nowhere"), Results())
    assert empty.asked == empty.cards == []
