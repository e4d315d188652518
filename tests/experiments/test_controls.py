"""Runs of the controls between a ViT and its Raptor, on a teacher of four layers."""

import pytest
import tiny

import brh_jax
from brh_jax.errors import UserError
from experiments import pipeline
from experiments.stages.agreement.run import AgreementResult
from experiments.stages.distill.run import DistillResult
from experiments.stages.teacher.run import TeacherResult


def config(source="train", **raptor):
    """One joint training."""
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases", "distill")
    config.teacher.source = source
    config.phases.k = (2,)
    config.distill.stage1.steps = 0
    config.distill.stage2.update({"optimizer": "muon", "loss": "log", "learning_rate": 0.005})
    config.distill.validation.times = 1
    config.raptor.update({"mlp": "gelu", "mlp_ratio": 2.0} | raptor)
    return config.lock()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """The folder of its weights."""
    workdir = tmp_path_factory.mktemp("teacher")
    made = config().unlock()
    made.stages = ("teacher",)
    pipeline.run(made, workdir)
    return str(workdir / "teacher" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("raptor", [{"unshared": "low_rank"}, {"unshared": "dropped"}, {"rank": 2}], ids=str)
def test_a_control_is_trained_measured_and_saved(raptor, teacher, tmp_path):
    results = pipeline.run(config(teacher, **raptor), tmp_path)
    own, whole = results.get(DistillResult).raptors["k2"].cost, results.get(TeacherResult).cost
    assert own.block_params < whole.block_params and own.block_bits == 32 * own.block_params
    assert whole.params - own.params == whole.block_params - own.block_params
    assert results.get(AgreementResult).fits["k2"].num_images == 40
    saved = brh_jax.load(tmp_path / "distill" / "k2" / "raptor")
    assert saved.depth == 4 and saved.config.applications == (2 if "dropped" in raptor.values() else 4)
    again = config(teacher, **raptor).unlock()
    again.distill.stage2.steps = 4
    with pytest.raises(UserError, match=r"distill.stage2.steps"):
        pipeline.run(again, tmp_path)


def test_low_ranks_are_trained_as_a_whole(teacher, tmp_path):
    made = config(teacher, rank=2).unlock()
    made.distill.stage1.steps = 4
    with pytest.raises(UserError, match="stage1.steps is 4, but layers of low rank are trained as a whole alone: set it to 0"):
        pipeline.run(made, tmp_path)
    with pytest.raises(UserError, match="rank is 2, of layers that share.*, but unshared is 'narrow'"):
        pipeline.run(config(teacher, rank=2, unshared="narrow"), tmp_path)
