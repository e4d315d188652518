"""Distillation: a Raptor for every partition."""

import dataclasses
from collections.abc import Iterable

import jax

from brh_jax import distill
from brh_jax.data.sources import Source
from brh_jax.distill import Blockwise, BlockwiseSettings, Joint, JointSettings, Validation
from brh_jax.distill.objectives import Objective
from brh_jax.distill.states import StatesBatches, open_states
from brh_jax.errors import UserError, expect, expect_not_negative, expect_one_of, expect_positive
from brh_jax.models import Encoder, RaptorConfig
from brh_jax.models.cost import unshared
from brh_jax.models.layers import MLP_KINDS
from brh_jax.models.remat import POLICIES
from brh_jax.partition import Partition
from brh_jax.train.loop import Run
from brh_jax.train.parallel import to_host
from experiments.data import EvalImages, ImageSet, TrainingImages
from experiments.settings import Common, flat, without_effect
from experiments.stage import Context
from experiments.stages.accuracy.run import classifier
from experiments.stages.phases.run import read_partitions
from experiments.stages.teacher.run import CostResult, cost_of, read_teacher


@dataclasses.dataclass(frozen=True)
class RaptorSettings:
    """The architecture of the blocks (paper, section 3).

    Attributes:
        mlp: feed-forward layer, swiglu, gelu, gelu_tanh or quick_gelu.
        mlp_ratio: its hidden width, of the width of a token.
        depth_scaling: whether branches and output are scaled by a function of depth.
        layer_scale_init: gain of the residual branches at the beginning.
        unshared: a control with the same number of parameters: narrow, every layer a block of its own, with a narrower
            feed-forward layer (k must be large enough for the attention); shallow, k blocks applied once each, for the last state
            of each phase; empty for shared blocks.
    """

    mlp: str = "swiglu"
    mlp_ratio: float = 4.0
    depth_scaling: bool = True
    layer_scale_init: float = 1e-5
    unshared: str = ""

    def __post_init__(self):
        expect_one_of(self, "mlp", MLP_KINDS)
        expect_positive(self, "mlp_ratio")
        expect_not_negative(self, "layer_scale_init")
        expect_one_of(self, "unshared", ("", "narrow", "shallow"))

    def config(self, teacher: Encoder, partition: Partition) -> RaptorConfig:
        """The architecture of a Raptor of that teacher. Raises UserError where its feed-forward layer would have no width."""
        width = round(self.mlp_ratio * teacher.dim)
        expect(width > 0, "config.raptor.mlp_ratio", self.mlp_ratio, f"more, for tokens of width {teacher.dim}")
        config = RaptorConfig(
            teacher.config,
            partition,
            mlp=self.mlp,
            mlp_dim=width,
            depth_scaling=self.depth_scaling,
            layer_scale_init=self.layer_scale_init,
            once=self.unshared == "shallow",
        )
        return unshared(config) if self.unshared == "narrow" else config


@dataclasses.dataclass(frozen=True)
class ValidationSettings:
    """How Raptors are measured as they train, on images of `config.data.eval`; nothing is where none are given.

    Attributes:
        times: how often in each training, evenly spread over its steps; 0 for never.
        num_images: images that it is done on, always the same.
    """

    times: int = without_effect(10)
    num_images: int = without_effect(256)

    def __post_init__(self):
        expect_not_negative(self, "times")
        expect_positive(self, "num_images")


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """How Raptors are trained (paper, section 4).

    Attributes:
        batch_size: images of a step.
        remat: what the backward pass keeps of a block: none (everything), dots, full (nothing).
        pieces: parts that a batch goes through in, gradients accumulated.
        stage1: each block on its own phase, from the teacher's states; 0 steps leave it out.
        stage2: the blocks joined, rolled out from the first state; 0 steps leave it out.
    """

    batch_size: int = 64
    remat: str = without_effect("dots")
    pieces: int = 1
    stage1: BlockwiseSettings = BlockwiseSettings()
    stage2: JointSettings = JointSettings()
    validation: ValidationSettings = ValidationSettings()

    def __post_init__(self):
        expect_positive(self, "batch_size", "pieces")
        expect_one_of(self, "remat", tuple(POLICIES))
        expect(self.batch_size % self.pieces == 0, "pieces", self.pieces, f"a divisor of the batch, {self.batch_size}")
        steps = self.stage1.steps + self.stage2.steps
        expect(steps > 0, "stage1.steps", self.stage1.steps, "a positive number, where stage2.steps is 0 as well")


@dataclasses.dataclass(frozen=True)
class DistillImages(TrainingImages, EvalImages):
    """What Raptors are trained on. Nothing that comes out depends on what they are measured on as they train.

    Attributes:
        states_gb: keep the teacher's states of the training images on disk, up to so many GB; 0 runs the teacher inside the step.
            For small sets without augmentation only: the paper's would take 13 TB.
    """

    states_gb: float = 0.0
    eval: str = without_effect("")
    eval_augment: str = without_effect("center_crop")

    def __post_init__(self):
        super().__post_init__()
        expect(self.states_gb >= 0, "states_gb", self.states_gb, "a size in GB, or 0")
        if self.states_gb and self.augment != "center_crop":
            raise UserError(
                f"states_gb is {self.states_gb}: it keeps one state for each image, but config.data.augment is {self.augment}; "
                "set config.data.augment=center_crop, or config.data.states_gb=0"
            )


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    data: DistillImages = DistillImages()
    raptor: RaptorSettings = RaptorSettings()
    distill: DistillSettings = DistillSettings()


@dataclasses.dataclass(frozen=True)
class RaptorResult:
    """A Raptor.

    Attributes:
        k: its number of phases.
        phases: they, as people write them.
        cost: its size and operations.
        trainings: folders of its trainings in the stage's, by what people call them.
    """

    k: int
    phases: str
    cost: CostResult
    trainings: dict[str, str]


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """The Raptors, by name."""

    raptors: dict[str, RaptorResult]


def read_raptors(context: Context, compute_dtype: str = "float32") -> dict[str, Encoder]:
    """Every Raptor of the run, by name; none in a run that neither distils nor has.

    Raises:
        UserError: the run distils, and has not yet.
    """
    if "distill" in context.stages:
        context.result(DistillResult, "distill")
    result = context.results.get(DistillResult)
    folder = context.workdir / "distill"
    return {
        name: context.encoder(folder / name / "raptor", "distill", compute_dtype) for name in (result.raptors if result else ())
    }


def read_blockwise(context: Context, name: str, compute_dtype: str = "float32") -> Encoder | None:
    """A Raptor as it was before its blocks were joined; None where they never were."""
    trainings = context.result(DistillResult, "distill").raptors[name].trainings.values()
    if not {f"{name}/stage1", f"{name}/stage2"} <= set(trainings):
        return None
    return context.encoder(context.workdir / "distill" / name / "stage1" / "raptor", "distill", compute_dtype)


def read_models(context: Context, compute_dtype: str = "float32") -> dict[str, Encoder]:
    """The teacher and every Raptor, by name; the first is the teacher."""
    return {"teacher": read_teacher(context, compute_dtype), **read_raptors(context, compute_dtype)}


def reads(settings: Settings) -> list[ImageSet]:
    """What is distilled on, and what Raptors are measured on as they train."""
    measured = settings.data.eval and settings.distill.validation.times
    return settings.data.named("train", *(["eval"] if measured else []))


def run(context: Context, settings: Settings) -> DistillResult:
    """Leaves every Raptor in `kN/raptor/`, and what it was before its blocks were joined in `kN/stage1/raptor/`."""
    teacher = read_teacher(context, settings.compute_dtype)
    source = context.source(settings.data.train, settings.data.data_dir)
    validation, raptors = _validation(context, settings, teacher, source), {}
    for k, partition in read_partitions(context).items():
        config = settings.raptor.config(teacher, partition)
        raptor, trainings = _train(context, settings, source, teacher, config, f"k{k}", validation)
        raptors[f"k{k}"] = RaptorResult(k, str(partition), cost_of(raptor), trainings)
    return DistillResult(raptors)


def _train(
    context: Context,
    settings: Settings,
    source: Source,
    teacher: Encoder,
    config: RaptorConfig,
    name: str,
    validation: Validation | None,
) -> tuple[Encoder, dict[str, str]]:
    """The trained Raptor, and the folders of its trainings by what people call them."""
    own, folder = settings.distill, context.folder / name
    every: dict[int, Objective] = {1: Blockwise(own.stage1), 2: Joint(own.stage2)}
    objectives = {number: objective for number, objective in every.items() if objective.settings.steps}
    # Where there is one training alone, people need not know its number.
    called = {number: f" stage {number}" if len(objectives) > 1 else "" for number in objectives}
    blocks = to_host(distill.init_blocks(config, teacher.layout, jax.random.key(settings.seed)))
    for number, objective in objectives.items():
        stage = f"stage{number}"
        # The second sees other crops in another order than the first.
        seed = 2 * settings.seed + number
        identity = flat(settings.raptor) | flat(getattr(own, stage))
        identity |= {"partition": str(config.partition), "layout": str(teacher.layout)}
        label = f"distill k={config.partition.k}{called[number]}"
        blocks = distill.train_blocks(
            objective,
            teacher,
            config,
            blocks,
            _batches(context, settings, source, teacher, seed),
            Run(folder / stage, identity, context.mesh, label, context.loop),
            batch_size=own.batch_size,
            seed=seed,
            remat=own.remat,
            pieces=own.pieces,
            validation=validation,
        )
        raptor = distill.raptor_encoder(config, blocks, teacher, f"Raptor {config.partition} of {teacher.name}")
        where = folder / ("raptor" if number == max(objectives) else f"{stage}/raptor")
        context.save(raptor, where, {"partition": str(config.partition), "stage": number})
    return raptor, {f"k = {config.partition.k}{called[number]}": f"{name}/stage{number}" for number in objectives}


def _validation(context: Context, settings: Settings, teacher: Encoder, train: Source) -> Validation | None:
    """What measures Raptors as they train; None where they are not to be, or on nothing."""
    data, own = settings.data, settings.distill.validation
    if not (data.eval and own.times):
        return None
    source = context.source(data.eval, data.data_dir, effect=False)

    def batches() -> Iterable[dict]:
        return context.measuring_batches(
            source,
            data.transform(data.eval_augment, teacher.preprocessing),
            num_images=own.num_images,
            batch_size=settings.distill.batch_size,
            label="images to validate on",
            seed=settings.seed,
            threads=data.threads,
        )

    return Validation(teacher, batches, times=own.times, **classifier(teacher, train, source)._asdict())


def _batches(context: Context, settings: Settings, source: Source, teacher: Encoder, seed: int):
    """Images for the teacher inside the step, or its states where they are kept on disk."""
    data, size = settings.data, settings.distill.batch_size
    if not data.states_gb:
        return data.training_batches(source, teacher.preprocessing, size, seed)
    folder, limit = context.workdir / "states", data.states_gb
    try:
        store = open_states(teacher, source, folder, limit_gb=limit, batch_size=size, mesh=context.mesh)
    except UserError as error:
        raise UserError(f"config.data.states_gb: {error}") from None
    return StatesBatches(store, size, seed=seed)
