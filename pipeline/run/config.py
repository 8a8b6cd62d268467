"""The configuration: frozen pydantic models, filled from a YAML file and ``key=value`` overrides.

Each key has its type, default, limits and meaning at its field; the options of an estimator have
them in the estimator's own file. What a person wrote, in a file or behind ``key=``, is taken by
the type of its key: text stands as it is written, and a number is a plain decimal one.

``python -m pipeline.run.config`` prints docs/config.md, the reference of all keys.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kernels import ESTIMATORS, TRANSFORMS
from kernels.estimators import Option
from models import ARCHS
from pipeline.run import plain_yaml
from pipeline.run.config_keys import Key, nearest, reference, refusal, shown, unknown
from pipeline.run.config_types import (
    Boolean,
    FilePath,
    Integer,
    Number,
    OneOf,
    OptionalEpochs,
    OptionalPath,
    OptionalSides,
    OptionalText,
    Text,
    Toggle,
    read_epochs,
    read_number,
    read_sides,
)
from pipeline.run.errors import UserError
from pipeline.run.plain_yaml import Written

PUBLISHED_CLASSES = {"cifar10": 10, "imagenet": 1000}
MOST_PROBLEMS = 5  # that one error names
MOST_KEYS = 1000  # of a section


def also(*names: str) -> dict[str, Any]:
    """Other names under which people look for a key, for the hint in an error."""
    return {"also": list(names)}


class Section(BaseModel):
    """Some keys of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunConfig(Section):
    dir: FilePath = Field(
        "runs",
        description="the folder that holds all runs",
        json_schema_extra=also("results_dir", "output_dir", "path", "folder"),
    )
    name: OptionalText = Field(
        None,
        validate_default=True,
        description="this run's folder in it; unset: the config's name",
        json_schema_extra=also("save", "experiment"),
    )
    resume: FilePath = Field(
        "auto",
        description="auto: go on where an interrupted run was; none: an existing run is an error; "
        "a checkpoint's path: go on from it in a new run",
    )

    @field_validator("name")
    @classmethod
    def _is_the_name_of_a_folder(cls, name: str | None) -> str | None:
        if not name or Path(name).name != name or name in (".", ".."):
            what = f"run.name is {shown(name)}"
            must = "it must be the plain name of a folder in run.dir"
            raise UserError(f"{what}; {must}, such as run.name=new")
        if len(os.fsencode(name)) > 255:
            raise UserError(
                "run.name is longer than 255 bytes; give a shorter name, such as run.name=new"
            )
        return name


class ModelConfig(Section):
    arch: Annotated[Text, AfterValidator(OneOf(ARCHS))] = Field(
        "resnet20",
        description="the network, see models/",
        json_schema_extra=also("model", "network", "name"),
    )
    bits: Literal["1w1a", "1w32a", "32w1a", "32w32a"] = Field(
        "1w1a", description="bits of weights and activations", json_schema_extra=also("a32")
    )
    weight_transform: Annotated[Text, AfterValidator(OneOf({"none": None, **TRANSFORMS}))] = Field(
        "none",
        description="what is done to binary weights before their sign, see kernels/transforms/",
        json_schema_extra=also("standardize", "weight_standardization", "normalize_weights"),
    )
    num_classes: Annotated[Integer, Field(ge=2)] | None = Field(
        None, description="classes of the classifier; null: as many as the data have"
    )
    weights: OptionalPath = Field(
        None,
        description="a checkpoint, ours or official, to start from (fine-tuning)",
        json_schema_extra=also("pretrained", "finetune", "init"),
    )

    @model_validator(mode="after")
    def _weights_to_transform_are_binary(self) -> Self:
        if self.weight_transform != "none" and self.bits.startswith("32w"):
            what = f"model.weight_transform is {self.weight_transform}"
            why = f"but a {self.bits} network has no binary weights"
            raise UserError(f"{what}, {why}; set model.weight_transform=none")
        return self


class EstimatorConfig(Section):
    """The estimator and the options of all estimators, which their own files declare."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[Text, AfterValidator(OneOf(ESTIMATORS))] = Field(
        "reste",
        description="the gradient of sign, see kernels/estimators/",
        json_schema_extra=also("estimator"),
    )

    if TYPE_CHECKING:

        def __getattr__(self, option: str) -> float: ...

    @model_validator(mode="before")
    @classmethod
    def _take_options(cls, values: Any) -> Any:
        """Hold the given options against their limits, and fill in the others."""
        if not isinstance(values, Mapping):
            return values
        known = {name: option for e in ESTIMATORS.values() for name, option in e.options.items()}
        numbers = {name: read_number(value) for name, value in values.items() if name != "name"}
        _refuse(line for item in numbers.items() for line in _option_problem(*item, known))
        defaults = {name: float(option.default) for name, option in known.items()}
        return dict(values) | defaults | numbers


def _option_problem(name: str, value: Any, known: Mapping[str, Option]) -> Iterator[str]:
    key = f"estimator.{name}"
    if name not in known:
        yield unknown(key, keys().values())
    elif not (type(value) is float and known[name].low <= value <= known[name].high):
        yield refusal(keys()[key], value)


class DataConfig(Section):
    dataset: Text = Field(
        "cifar10",
        description="cifar10; cifar100; imagenet: any tree with train/ and val/ of class folders; "
        "synthetic: drawn here; see pipeline/data/open.py",
    )
    path: OptionalPath = Field(
        None,
        description="where the data lie; synthetic: unset draws them once",
        json_schema_extra=also("data", "root", "dir", "folder", "data_path", "data_dir"),
    )
    exclude: OptionalPath = Field(
        None,
        description="a list of images to leave out, such as ./reste prepare verify writes",
        json_schema_extra=also("skip", "ignore"),
    )
    download: Boolean = Field(
        False, description="of CIFAR: download torchvision's files when they are missing"
    )
    format: Text = Field(
        "auto",
        description="of image trees: folder; webdataset, the shards of ./reste prepare shard; "
        "auto: what lies there",
    )
    loader: Text = Field(
        "auto", description="of image trees: dali, torchvision; auto: the first that is installed"
    )
    batch_size: Integer = Field(
        256,
        ge=1,
        description="images per training step, over all processes",
        json_schema_extra=also("b", "batch"),
    )
    eval_batch_size: Integer = Field(
        128,
        ge=1,
        description="images per evaluation step",
        json_schema_extra=also("bt", "val_batch_size", "test_batch_size"),
    )
    hw_decoder_load: Number = Field(
        0.75,
        ge=0,
        le=1,
        description="dali on a GPU: the share of the JPEG files that goes to its JPEG engines, if "
        "it has some; make bench-loader SWEEP=1 finds the best",
    )
    workers: Integer = Field(
        8, ge=0, le=1024, description="loader threads (dali) or processes (torchvision)"
    )
    augment: Boolean = Field(
        True,
        description="random crop and flip of training images",
        json_schema_extra=also("augmentation"),
    )
    jitter: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="colour jitter of training images: brightness, contrast and saturation are "
        "each multiplied by up to 1 plus or minus this",
        json_schema_extra=also("color_jitter", "colour_jitter", "brightness"),
    )
    mixup: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="training images are blended in pairs, and so are their labels, by a share "
        "from Beta(a, a) with this a; 0: they are not",
        json_schema_extra=also("mixup_alpha", "mix"),
    )
    size: Integer = Field(
        224,
        ge=8,
        le=4096,
        description="side of the images of JPEG trees, in pixels",
        json_schema_extra=also("image_size", "img_size", "crop", "crop_size", "resolution"),
    )
    train_sizes: OptionalSides = Field(
        None,
        description="sides of the training images of JPEG trees, each for an equal part of the "
        "epochs, one after the other; null: data.size, which evaluation always takes",
        json_schema_extra=also("progressive", "progressive_resizing", "train_size", "sizes"),
    )
    resize: Integer = Field(
        256,
        ge=8,
        le=4096,
        description="short side before the central crop in evaluation, in pixels",
    )
    min_area: Number = Field(
        0.08,
        ge=1e-6,
        le=1,
        description="smallest share of an image that the random resized crop takes",
        json_schema_extra=also("scale"),
    )

    @model_validator(mode="after")
    def _crop_lies_in_the_image(self) -> Self:
        if self.resize < self.size:
            what = f"data.resize is {self.resize}"
            must = f"it must be at least data.size ({self.size})"
            raise UserError(f"{what}; {must}, such as data.resize={self.size}")
        return self


class TrainConfig(Section):
    epochs: Integer = Field(
        1000,
        ge=1,
        description="passes over the training images",
        json_schema_extra=also("num_epochs", "max_epochs"),
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one", json_schema_extra=also("gpu", "gpus")
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32",
        description="auto: bf16 where the GPU (compute capability 8.0 or more) or the processor "
        "(AVX-512 BF16 or AMX) has it in hardware, else fp32; a run that goes on keeps its own. "
        "bf16 and fp16: autocast, fp16 with loss scaling; on a CPU fp16 takes 17 times as long as "
        "fp32, and is refused unless train.device=cpu. fp64: for verification",
        json_schema_extra=also("amp", "dtype", "half", "bf16", "fp16", "mixed_precision"),
    )
    grad_accumulation: Integer = Field(
        1,
        ge=1,
        description="parts in which a step takes its batch, one after the other, for less memory; "
        "the gradients are those of the whole batch, but batch norm sees a part at a time",
        json_schema_extra=also("accumulation", "accum", "micro_batches", "iter_size"),
    )
    threads: Annotated[Integer, Field(ge=1, le=1024)] | None = Field(
        None,
        description="threads of a step on the processor; null: OMP_NUM_THREADS, else as many cores "
        "as the machine grants and other programs leave when a run begins",
        json_schema_extra=also("num_threads", "cores", "cpus", "omp_num_threads"),
    )
    cuda_graph: Toggle = Field(
        "auto",
        description="the whole step as one CUDA graph, and the evaluation; auto: on a GPU with "
        "optim.impl=torch_fused, but for fp64; with several processes, where each has its own GPU",
    )
    label_smoothing: Number = Field(
        0.0, ge=0, le=0.999, description="of the cross-entropy, 0 to below 1"
    )
    sync_bn: Toggle = Field(
        "auto",
        description="batch norm over the images of all processes; auto: when there are several",
        json_schema_extra=also("sync_batchnorm", "syncbn"),
    )
    timeout: Number = Field(
        600.0,
        ge=1,
        le=1e9,
        description="seconds after which a process that waits for another gives up",
    )
    ema_decay: Number = Field(
        0.0,
        ge=0,
        le=1 - 1e-9,
        description="decay per step of averaged weights, which are evaluated; 0: off. Give them "
        "train.reestimate_bn too: else batch norm's statistics are those of the last weights",
        json_schema_extra=also("ema"),
    )
    reestimate_bn: Integer = Field(
        0,
        ge=0,
        description="training batches over which batch norm's statistics are taken anew before "
        "each evaluation, and for best.pt: docs/accuracy.md; 0: the running ones, as published",
        json_schema_extra=also("bn_reestimation", "precise_bn", "bn_update", "recalibrate"),
    )

    @model_validator(mode="before")
    @classmethod
    def _forget_compile(cls, values: Any) -> Any:
        """Runs of former versions have ``compile`` in their files: what is in C++ now had
        torch.compile then."""
        return {k: v for k, v in values.items() if k != "compile"} if values else values


class OptimConfig(Section):
    name: Literal["sgd", "adam", "adamw", "bop"] = Field(
        "sgd",
        description="the optimizer: SGD with momentum; Adam; AdamW, whose decay is not part of the "
        "gradient; or Bop, which flips binary weights and keeps no latent ones, and Adam for the "
        "others",
        json_schema_extra=also("optim", "optimizer", "opt"),
    )
    impl: Literal["torch_fused", "torch", "apex"] = Field(
        "torch_fused",
        description="its implementation; apex: sgd alone",
        json_schema_extra=also("implementation", "fused"),
    )
    lr: Number = Field(
        0.1,
        ge=0,
        le=1e6,
        description="learning rate at the start of the schedule",
        json_schema_extra=also("learning_rate"),
    )
    momentum: Number = Field(0.9, ge=0, le=1, description="momentum of sgd")
    beta1: Number = Field(
        0.9,
        ge=0,
        le=1 - 1e-9,
        description="of adam, adamw and bop: decay per step of the mean of gradients",
        json_schema_extra=also("betas", "beta"),
    )
    beta2: Number = Field(
        0.999,
        ge=0,
        le=1 - 1e-9,
        description="of adam, adamw and bop: decay per step of the mean of squared gradients",
    )
    bop_gamma: Number = Field(
        1e-4,
        ge=0,
        le=1,
        description="bop: the share of a new gradient in the mean that flips weights, at the start "
        "of the schedule, which it follows like the learning rate",
        json_schema_extra=also("adaptivity_rate"),
    )
    bop_threshold: Number = Field(
        1e-8,
        ge=0,
        le=1e6,
        description="bop: the mean of gradients beyond which a weight flips",
    )
    ovsw_delta: Number = Field(
        0.0,
        ge=0,
        le=1e6,
        description="the least norm of a binary channel's gradient, as a share of its weights' "
        "(OvSW): 0.01 for ImageNet, 0.04 for resnet20; 0: off",
        json_schema_extra=also("adaptive_gradient_scale"),
    )
    ovsw_decay: Number = Field(
        0.0,
        ge=0,
        le=1e6,
        description="the share of itself that is added to the gradient of a binary weight whose "
        "sign hardly ever flips (OvSW): 2e-5 for ImageNet, 9e-4 for resnet20; 0: off",
        json_schema_extra=also("silent_decay", "dampen"),
    )
    weight_decay: Number = Field(
        1e-4,
        ge=0,
        le=1e6,
        description="L2 penalty on every parameter; of adamw: the share that it loses per step at "
        "a learning rate of 1",
        json_schema_extra=also("l2", "decay"),
    )
    decay_norms: Boolean = Field(
        True,
        description="whether weight_decay holds for the weights and biases of norms too",
        json_schema_extra=also("norm_decay", "no_bias_decay", "bn_weight_decay"),
    )
    schedule: Literal["cosine", "linear", "step"] = Field(
        "cosine",
        description="of the learning rate: a cosine to 0, a line to 0, or steps",
        json_schema_extra=also("scheduler", "lr_scheduler", "lr_type"),
    )
    milestones: OptionalEpochs = Field(
        None,
        description="step: the epochs (from 0) from which on the rate is smaller",
        json_schema_extra=also("lr_steps", "steps"),
    )
    factor: Number = Field(
        0.1,
        ge=0,
        le=1,
        description="step: what the rate is multiplied by at each milestone",
        json_schema_extra=also("gamma", "lr_decay"),
    )
    warmup_epochs: Integer = Field(
        0, ge=0, description="epochs of linear warm-up", json_schema_extra=also("warmup", "warm_up")
    )

    @model_validator(mode="after")
    def _apex_is_for_sgd(self) -> Self:
        if self.impl == "apex" and self.name != "sgd":
            what = f"optim.impl is apex, which is for sgd alone, but optim.name is {self.name}"
            raise UserError(f"{what}; set optim.impl=torch_fused")
        return self

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        """The epochs of ``milestones``."""
        return read_epochs(self.milestones) if self.milestones else ()


class DistillConfig(Section):
    teacher: OptionalPath = Field(
        None,
        description="the network whose outputs are learned in place of the labels: a checkpoint, "
        "ours or official, or torchvision's by its name, such as resnet34; null: none",
        json_schema_extra=also("distill", "distillation", "kd", "teacher_model"),
    )
    teacher_weights: OptionalPath = Field(
        None,
        description="a file with the weights of torchvision's teacher; null: it fetches its own",
        json_schema_extra=also("weights", "teacher_checkpoint"),
    )
    labels: Boolean = Field(
        False, description="learn the label of an image for which the teacher is wrong"
    )

    @model_validator(mode="after")
    def _weights_have_a_teacher(self) -> Self:
        if self.teacher_weights and not self.teacher:
            raise UserError(
                "distill.teacher_weights is set, but distill.teacher is null; name the network "
                "that they are of, such as distill.teacher=resnet34"
            )
        return self


class CheckpointConfig(Section):
    keep: Integer = Field(2, ge=1, description="newest checkpoints that stay, besides best.pt")
    every_epochs: Integer = Field(
        1,
        ge=1,
        description="epochs between checkpoints; the last epoch always makes one",
        json_schema_extra=also("checkpoint", "save_every", "save_freq", "every", "interval"),
    )
    every_steps: Integer = Field(
        0, ge=0, description="steps between checkpoints in mid-epoch; 0: none"
    )


class LogConfig(Section):
    every: Integer = Field(
        100,
        ge=1,
        description="steps between lines and step records",
        json_schema_extra=also("log", "print_freq", "log_every", "log_interval"),
    )
    eta: Integer = Field(
        1,
        ge=0,
        description="epochs between estimates of the time of finish; 0: none",
        json_schema_extra=also("time_estimate"),
    )
    histograms: Integer = Field(
        0,
        ge=0,
        description="epochs between histograms of the latent weights of each layer, in "
        "metrics.jsonl, wandb and TensorBoard; 0: none",
        json_schema_extra=also("histogram", "hist", "weights"),
    )
    wandb: Literal["disabled", "offline", "online"] = Field(
        "disabled", description="Weights & Biases", json_schema_extra=also("wandb_mode")
    )
    project: Text = Field(
        "reste", description="the wandb project", json_schema_extra=also("wandb_project")
    )
    group: OptionalText = Field(None, description="wandb shows runs of one group together")
    tags: OptionalText = Field(None, description="tags of the run in wandb, with commas between")
    notes: OptionalText = Field(None, description="words about the run in wandb")
    artifacts: Literal["none", "best"] = Field(
        "none", description="best: wandb gets the best checkpoint at the end"
    )
    tensorboard: Boolean = Field(
        False,
        description="write event files for TensorBoard too, to the run's folder tensorboard/; it "
        "must be installed: pip install tensorboard",
    )


class IndicatorsConfig(Section):
    enabled: Boolean = Field(
        False,
        description="record in every epoch, for each layer, estimating error, gradient stability, "
        "sign flips, weights without gradient and the share of +1: docs/indicators.md",
        json_schema_extra=also("indicators", "cal_ind"),
    )
    official: Boolean = Field(
        False, description="also record them as the official --cal_ind computes them"
    )
    samples: Integer = Field(4096, ge=2, description="activations looked at per sign and step")


class Config(Section):
    """The whole config; ``load_config`` and ``make_config`` make it."""

    seed: Integer = Field(
        1234,
        ge=0,
        le=2**32 - 1,
        description="of weights, order of images and augmentation",
        json_schema_extra=also("random_seed", "manual_seed"),
    )
    deterministic: Boolean = Field(
        False, description="only deterministic algorithms: bit-identical runs"
    )
    run: RunConfig
    model: ModelConfig
    estimator: EstimatorConfig
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig
    distill: DistillConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    indicators: IndicatorsConfig

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        warmup, epochs = self.optim.warmup_epochs, self.train.epochs
        if warmup and warmup >= epochs:
            what = f"optim.warmup_epochs is {warmup}"
            must = f"it must be below train.epochs ({epochs})"
            raise UserError(f"{what}; {must}, such as optim.warmup_epochs={epochs - 1}")
        return self

    @model_validator(mode="after")
    def _bop_flips_the_weights_themselves(self) -> Self:
        latent = {
            "model.weight_transform": (self.model.weight_transform, "none"),
            "estimator.name": (self.estimator.name, "reste"),
        }
        for key, (value, plain) in latent.items() if self.optim.name == "bop" else ():
            if value in ("biper", *TRANSFORMS):
                what = f"{key} is {value}, which is for latent weights, but optim.name is bop"
                raise UserError(f"{what}, which keeps none; set {key}={plain}")
        return self

    @model_validator(mode="after")
    def _steps_have_milestones(self) -> Self:
        if self.optim.schedule == "step" and not self.optim.milestones:
            half = max(1, self.train.epochs // 2)
            raise UserError(
                "optim.schedule is step, but optim.milestones is null; name the epochs at which "
                f"the rate falls, such as optim.milestones={half}"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """The folder of this run."""
        return Path(self.run.dir) / str(self.run.name)

    @property
    def network(self) -> tuple[str, str, int]:
        """What ``build_model`` takes first: arch, bits and the number of classes, which is that of
        the data set on which the network was published where model.num_classes is unset."""
        model = self.model
        published = PUBLISHED_CLASSES[ARCHS[model.arch].dataset]
        return model.arch, model.bits, model.num_classes or published

    @property
    def train_sides(self) -> tuple[int, ...]:
        """The sides of the training images of a JPEG tree, each for an equal part of the epochs."""
        data = self.data
        return read_sides(data.train_sizes) if data.train_sizes else (data.size,)

    def train_side(self, epoch: int) -> int:
        """The side of the training images of a JPEG tree in ``epoch``, from 0 on; after the last
        epoch it stays."""
        epochs, sides = self.train.epochs, self.train_sides
        return sides[min(epoch, epochs - 1) * len(sides) // epochs]

    @property
    def estimator_options(self) -> dict[str, float]:
        """The options of the estimator in use, for ``build_model``."""
        options = ESTIMATORS[self.estimator.name].options
        return {option: getattr(self.estimator, option) for option in options}

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """This config with other values, checked, such as ``{"data.batch_size": 8}``."""
        nested = to_dict(self)
        for key, value in values.items():
            _put(nested, key, value)
        return make_config(nested)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, name: str | None = None
) -> Config:
    """The config of a YAML file, changed by ``key=value`` strings. Where run.name is unset, it is
    ``name``, or that of the file.

    Raises:
        UserError: the file cannot be read or is no plain YAML, or as ``make_config`` raises it.
    """
    path = Path(path)
    return make_config(plain_yaml.load(path), overrides, name=name or path.stem)


def make_config(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str | None = None
) -> Config:
    """The config of nested ``values`` and ``key=value`` strings over the defaults.

    ``Written`` text among the values is read as an override is; any other value must have the type
    of its key, but that an integer is a number too. ``name`` stands in where run.name is unset.

    Raises:
        UserError: an override without "=", an unknown key, a wrong type or a bad value; one line
            names each of the keys, up to ``MOST_PROBLEMS``.
    """
    nested = _sections(values)
    wrong = [line for override in overrides for line in _override(nested, override)]
    if isinstance(nested["run"], dict) and nested["run"].get("name") is None:
        nested["run"]["name"] = name
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        _refuse(chain(wrong, _problems(error)))
    _refuse(wrong)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values."""
    return config.model_dump()


def flatten(config: Config) -> dict[str, Any]:
    """The config as one dict from dotted keys to values."""
    return dict(_walk(to_dict(config)))


def _walk(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def keys() -> dict[str, Key]:
    """All keys by name, those of the estimators that are registered now included."""
    return {key.name: key for key in _keys()}


def _keys() -> Iterator[Key]:
    for name, field in Config.model_fields.items():
        if name not in SECTIONS:
            yield Key.of_field(name, field)
            continue
        for inner, each in SECTIONS[name].model_fields.items():
            yield Key.of_field(f"{name}.{inner}", each)
        for estimator in ESTIMATORS.values() if name == "estimator" else ():
            for option in estimator.options.items():
                yield Key.of_option(estimator.name, *option)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` that holds every section; an empty one may be null."""
    if not isinstance(values, Mapping):
        raise UserError(f"the config is {shown(values)}; it must hold keys and values")
    if any(len(v) > MOST_KEYS for v in (values, *values.values()) if isinstance(v, Mapping)):
        raise UserError(f"the config holds more than {MOST_KEYS} keys in a section; leave some out")
    nested = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    return nested | {name: {} for name in SECTIONS if nested.get(name) is None}


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    (nested[section] if section else nested)[name] = value


def _override(nested: dict[str, Any], override: str) -> Iterator[str]:
    """Put the value of an override into ``nested``, or say what is wrong with it."""
    key, equals, text = override.partition("=")
    if not equals or key.startswith("-"):
        yield _no_override(override)
    elif key not in keys():
        yield _unknown(key)
    elif isinstance(nested.get(key.partition(".")[0], {}), dict) or "." not in key:
        _put(nested, key, None if text == "null" else Written(text))


def _no_override(override: str) -> str:
    """How an override is written, for one that has no "=" or that begins with a dash."""
    word, _, value = override.lstrip("-").partition("=")
    key = word if word in keys() else nearest(word, keys().values()) or "optim.lr"
    what = "begins with a dash" if override.startswith("-") else "has no '='"
    example = f"{key}={value if value.isprintable() and 0 < len(value) < 80 else 'VALUE'}"
    return f"override {shown(override)} {what}; write key=value, such as {example}"


def _problems(error: ValidationError) -> Iterator[str]:
    """A line for each error that pydantic found."""
    for each in error.errors(include_url=False):
        key = ".".join(map(str, each["loc"]))
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            yield str(cause)
        elif each["type"] in ("extra_forbidden", "invalid_key"):
            yield _unknown(key)
        elif key in SECTIONS:
            value = shown(each["input"])
            yield f"{key} is {value}, but it is a section; write {key}: {{key: value}}"
        else:
            yield refusal(keys()[key], each["input"], str(cause or ""))


def _unknown(key: str) -> str:
    what = "a section, no config key" if key in SECTIONS else "no config key"
    return unknown(key, keys().values(), what=what)


def _refuse(problems: Iterable[str]) -> None:
    """Raise the first problems as one line, if there are any; the rest is not even looked at."""
    lines = list(islice(problems, MOST_PROBLEMS + 1))
    if lines:
        more = "; and more" if len(lines) > MOST_PROBLEMS else ""
        raise UserError("; also ".join(lines[:MOST_PROBLEMS]) + more)


if __name__ == "__main__":
    print(reference(keys().values()), end="")
