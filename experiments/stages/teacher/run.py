"""The teacher: converted from pretrained weights, trained here, or not trained at all."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp

import brh_jax
from brh_jax.data.sources import Source, Subset
from brh_jax.errors import UserError, expect, expect_not_negative, expect_positive
from brh_jax.models import Encoder, ViT, ViTConfig, store
from brh_jax.models.cost import cost, describe
from brh_jax.models.encoder import init_params
from brh_jax.models.registry import Architecture, architecture, check_architecture
from brh_jax.preprocessing import Preprocessing
from brh_jax.supervised import SupervisedSettings, train_vit
from brh_jax.train.loop import Run
from experiments.data import ImageSet, TrainingImages
from experiments.settings import Seeded, flat
from experiments.stage import Context


@dataclasses.dataclass(frozen=True)
class VitSettings(ViTConfig):
    """The architecture of a teacher that is trained here; see `brh_jax.models.ViTConfig`."""

    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_dim: int = 768
    patch_size: int = 16
    position_grid: tuple[int, int] | None = None

    def __post_init__(self):
        expect_positive(self, "dim", "depth", "num_heads", "mlp_dim", "patch_size", "channels", "layer_norm_eps")
        expect_not_negative(self, "num_cls", "num_registers")
        expect(0 <= self.drop_path < 1, "drop_path", self.drop_path, "a probability, from 0 to below 1")
        super().__post_init__()

    def config(self, image_size: int) -> ViTConfig:
        """The architecture with a position table for images of that size."""
        grid = (max(image_size // self.patch_size, 1),) * 2
        return ViTConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"position_grid": grid})


@dataclasses.dataclass(frozen=True)
class TrainSettings(SupervisedSettings):
    """How a teacher is trained here.

    Attributes:
        num_images: at most so many images of the training set, drawn at random; 0 for all.
        snapshots: numbers of steps after which the teacher is also kept, 0 for the untrained one.
    """

    num_images: int = 0
    snapshots: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        expect(self.num_images >= 0, "num_images", self.num_images, "a number of images, or 0 for all")
        inside = all(0 <= step <= self.steps for step in self.snapshots)
        expect(inside, "snapshots", self.snapshots, f"numbers of steps from 0 to {self.steps}")


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    """Where the teacher comes from.

    Attributes:
        source: hf:organisation/model, a file or folder of weights, "train" for a ViT trained here from scratch, or random:ARCH
            for an architecture by name with random parameters, as a control.
        arch: refuse weights of any other architecture; empty takes what comes.
    """

    source: str = ""
    arch: str = ""
    vit: VitSettings = VitSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self):
        if not self.source:
            return  # default.py alone: said by the stage
        for name in (self.arch, self.source.removeprefix("random:") if self.source.startswith("random:") else ""):
            if name:
                architecture(name)


@dataclasses.dataclass(frozen=True)
class TeacherImages(TrainingImages):
    """What the teacher sees.

    Attributes:
        image_size: side of the images in pixels; 0 keeps what comes with the teacher's weights.
    """

    image_size: int = 0

    def __post_init__(self):
        super().__post_init__()
        expect_not_negative(self, "image_size")


@dataclasses.dataclass(frozen=True)
class Settings(Seeded):
    """Sections that the stage uses."""

    teacher: TeacherSettings = TeacherSettings()
    data: TeacherImages = TeacherImages()


@dataclasses.dataclass(frozen=True)
class LayoutResult:
    """The tokens of a state; see `brh_jax.TokenLayout`."""

    num_cls: int
    num_registers: int
    grid: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class CostResult:
    """What a model costs; see `brh_jax.models.cost`."""

    params: int
    block_params: int
    flops_per_image: int
    parameter_bits: int
    block_bits: int
    partition_bits: float
    log2_flops: float
    levin: float


@dataclasses.dataclass(frozen=True)
class TeacherResult:
    """What the teacher is.

    Attributes:
        name: for people.
        notes: where it came from, and what was assumed.
        depth, dim: number of layers, width of a token.
        layout: its tokens.
        cost: its size and operations.
        snapshots: numbers of training steps that it was kept after.
    """

    name: str
    notes: list[str]
    depth: int
    dim: int
    layout: LayoutResult
    cost: CostResult
    snapshots: list[int]


def read_teacher(context: Context, compute_dtype: str = "float32") -> Encoder:
    """The teacher of the run. Raises UserError before the teacher stage is done."""
    return context.encoder(context.workdir / "teacher" / "model", "teacher", compute_dtype)


def snapshot_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Where what the teacher was after some steps is kept."""
    return workdir / "teacher" / "snapshots" / f"step{step}"


def cost_of(encoder: Encoder) -> CostResult:
    """Size, operations and description length of a model."""
    return CostResult(**cost(encoder)._asdict(), **describe(encoder)._asdict())


def reads(settings: Settings) -> list[ImageSet]:
    """What it is trained on, where it is trained here. Raises UserError where no teacher is named."""
    if not settings.teacher.source:
        raise UserError(
            "config.teacher.source is empty: expected hf:organisation/model, a weight file or folder, or train, as in "
            "--config.teacher.source=weights.safetensors"
        )
    return settings.data.named("train", labelled=True) if settings.teacher.source == "train" else []


def ready(settings: Settings) -> None:
    """Raises UserError where there are no weights, but for those that the hub has or has not."""
    source = settings.teacher.source
    if source.startswith("random:"):
        architecture(source.removeprefix("random:"))
    elif source != "train" and not source.startswith("hf:") and not store.is_encoder_folder(source):
        from weights_convert.sources import locate

        try:
            locate(source)
        except UserError as error:
            raise UserError(f"config.teacher.source: {error}") from None


def run(context: Context, settings: Settings) -> TeacherResult:
    """Leaves the teacher in `model/`, and what it was after some steps of training in `snapshots/stepN/`."""
    own = settings.teacher
    if own.source == "train":
        encoder, notes = _train(context, settings), ["trained here from scratch"]
    else:
        encoder, notes = _pretrained(context, settings)
        if encoder.config.kind != "vit":
            raise UserError(f"config.teacher.source {own.source} is a Raptor: expected a ViT")
    context.save(encoder, context.folder / "model", {"lines": notes})
    layout = LayoutResult(**dataclasses.asdict(encoder.layout))
    snapshots = list(own.train.snapshots) if own.source == "train" else []
    return TeacherResult(encoder.name, notes, encoder.depth, encoder.dim, layout, cost_of(encoder), snapshots)


def _pretrained(context: Context, settings: Settings) -> tuple[Encoder, list[str]]:
    """Weights from anywhere, or a converted folder."""
    source, arch, size = _model_of(settings.teacher.source), settings.teacher.arch, settings.data.image_size or None
    if source.startswith("random:"):
        encoder = _untrained(architecture(source.removeprefix("random:")), size, settings.seed)
        return encoder, [f"randomly initialised, seed {settings.seed}: {source}"]
    from weights_convert.cache import fingerprint

    context.outside(f"weights {source}", fingerprint(source))
    if store.is_encoder_folder(source):
        encoder = brh_jax.load(source, image_size=size)
        if arch:
            check_architecture(source, encoder.config, arch)
        return encoder, [f"converted before: {source}"]
    from weights_convert.convert import convert

    encoder, report = convert(source, arch=arch, image_size=size)
    notes = report.lines(encoder)
    print("\n".join(notes), flush=True)
    return encoder, notes


def _model_of(source: str) -> str:
    """Where the teacher of another run lies that is given by its folder; any other source as it is."""
    place = pathlib.Path(source).expanduser() / "model"
    return str(place) if store.is_encoder_folder(place) else source


def _untrained(arch: Architecture, size: int | None, seed: int) -> Encoder:
    """A control: the architecture with the parameters that its training would begin with."""
    size = size or arch.image_size
    image = jnp.zeros((1, size, size, arch.config.channels))
    params = jax.jit(functools.partial(init_params, ViT(arch.config)))(jax.random.key(seed), image)
    return Encoder(arch.config, params, Preprocessing((size, size)), name=f"untrained {arch.hub_id}")


def _train(context: Context, settings: Settings) -> Encoder:
    own, data, size = settings.teacher, settings.data, settings.data.image_size
    if not size:
        raise UserError("config.data.image_size is 0: a teacher trained here needs the size of its images in pixels")
    vit = own.vit.config(size)
    vit.layout(size, size)
    preprocessing = Preprocessing((size, size), None, (0.5,) * 3, (0.5,) * 3)
    source = open_training_images(context, data, own.train.num_images, settings.seed)

    def keep(step: int, encoder: Encoder) -> None:
        context.save(encoder, snapshot_folder(context.workdir, step), {"step": step, "of": own.train.steps})

    identity = flat(own.vit, prefix="vit.") | flat(own.train, prefix="train.")
    return train_vit(
        vit,
        preprocessing,
        len(source.classes),
        data.training_batches(source, preprocessing, own.train.batch_size, settings.seed),
        own.train,
        Run(context.folder / "training", identity, context.mesh, "teacher", context.loop),
        seed=settings.seed,
        name=f"ViT trained on {source.name}",
        snapshots=own.train.snapshots,
        keep=keep,
    )


def open_training_images(context: Context, data: TrainingImages, limit: int, seed: int) -> Source:
    """The images that a teacher is trained on: `limit` of them, where that is not 0."""
    source = context.source(data.train, data.data_dir)
    return Subset(source, limit, seed) if limit else source
