"""The configuration: frozen dataclasses, filled from a YAML file and ``key=value`` overrides.

``python -m pipeline.run.config`` prints the table of all keys that the README holds.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kernels import ESTIMATORS
from models import ARCHS
from pipeline.run.errors import UserError


def key(default: Any, meaning: str) -> Any:
    """A field with its default and, for the README's table, its meaning."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class RunConfig:
    dir: str = key("runs", "the folder that holds all runs")
    name: str | None = key(None, "this run's folder in it; unset: the config's name")
    resume: str = key(
        "auto",
        "auto: go on where an interrupted run was; none: an existing run is an error; "
        "a checkpoint's path: go on from it in a new run",
    )


@dataclass(frozen=True)
class ModelConfig:
    arch: str = key("resnet20", " | ".join(ARCHS))
    bits: Literal["1w1a", "1w32a", "32w32a"] = key("1w1a", "bits of weights and activations")
    num_classes: int = key(10, "classes of the classifier; must be those of the data")
    weights: str | None = key(None, "a checkpoint, ours or official, to start from (fine-tuning)")


@dataclass(frozen=True)
class EstimatorConfig:
    name: str = key("reste", " | ".join(ESTIMATORS) + "; see kernels/estimators/")
    o_end: float = key(3.0, "reste: the power o at the end of training, at least 1")
    ede_t_min: float = key(
        1e-3,
        "ede: the slope t at the start of training, at most 10; the paper's is 0.001 for resnet20 "
        "in 1w1a, 0.1 in 1w32a and for vgg_small",
    )
    swishsign_b: float = key(5.0, "swishsign: the steepness b")
    dsq_a: float = key(0.2, "dsq: the constant a, between 0 and 1; the paper learns it")
    fda_w: float = key(1.0, "fda: the frequency w")


@dataclass(frozen=True)
class DataConfig:
    dataset: Literal["cifar10", "imagenet", "synthetic"] = key(
        "cifar10", "imagenet: any tree with train/ and val/ of class folders; synthetic: drawn here"
    )
    path: str | None = key(None, "where the data lie; synthetic: unset draws them once")
    exclude: str | None = key(
        None, "a list of images to leave out, such as ./reste prepare verify writes"
    )
    download: bool = key(False, "cifar10: download torchvision's files when they are missing")
    loader: Literal["auto", "dali", "torchvision"] = key(
        "auto", "of JPEG trees; auto: dali where it is installed"
    )
    batch_size: int = key(256, "images per training step, over all processes")
    eval_batch_size: int = key(128, "images per evaluation step")
    workers: int = key(8, "loader threads (dali) or processes (torchvision)")
    augment: bool = key(True, "random crop and flip of training images")
    size: int = key(224, "side of the images of JPEG trees, in pixels")
    resize: int = key(256, "short side before the central crop in evaluation, in pixels")
    min_area: float = key(0.08, "smallest share of an image that the random resized crop takes")


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = key(1000, "passes over the training images")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto: cuda where there is one")
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = key(
        "fp32", "bf16 and fp16: autocast (fp16 with loss scaling); fp64: for verification"
    )
    cuda_graph: Literal["auto", "true", "false"] = key(
        "auto",
        "the whole step as one CUDA graph, and the evaluation; auto: where it can be: one process "
        "on a GPU, images that lie there (cifar10), optim.impl=torch_fused",
    )
    compile: Literal["auto", "true", "false"] = key(
        "auto",
        "on a CPU, blocks fused by torch.compile, which takes a C++ compiler and, the first time, "
        "up to a minute; auto: where images x epochs are at least 100,000, but for fp64",
    )
    label_smoothing: float = key(0.0, "of the cross-entropy, 0 to below 1")
    sync_bn: Literal["auto", "true", "false"] = key(
        "auto", "batch norm over the images of all processes; auto: when there are several"
    )
    timeout: float = key(600.0, "seconds after which a process that waits for another gives up")
    ema_decay: float = key(0.0, "decay per step of averaged weights, which are evaluated; 0: off")


@dataclass(frozen=True)
class OptimConfig:
    impl: Literal["torch_fused", "torch", "apex"] = key("torch_fused", "implementation of SGD")
    lr: float = key(0.1, "learning rate at the start of the cosine")
    momentum: float = key(0.9, "momentum of SGD")
    weight_decay: float = key(1e-4, "L2 penalty on every parameter")
    warmup_epochs: int = key(0, "epochs of linear warm-up")


@dataclass(frozen=True)
class CheckpointConfig:
    keep: int = key(2, "newest checkpoints that stay, besides best.pt")
    every_epochs: int = key(1, "epochs between checkpoints; the last epoch always makes one")
    every_steps: int = key(0, "steps between checkpoints in mid-epoch; 0: none")


@dataclass(frozen=True)
class LogConfig:
    every: int = key(100, "steps between lines and step records")
    eta: int = key(1, "epochs between estimates of the time of finish; 0: none")
    wandb: Literal["disabled", "offline", "online"] = key("disabled", "Weights & Biases")
    project: str = key("reste", "the wandb project")


@dataclass(frozen=True)
class IndicatorsConfig:
    enabled: bool = key(False, "record estimating error and gradient stability in every epoch")
    official: bool = key(False, "also record them as the official --cal_ind computes them")
    samples: int = key(4096, "activations looked at per layer and step")


@dataclass(frozen=True)
class Config:
    seed: int = key(1234, "of weights, order of images and augmentation")
    deterministic: bool = key(False, "only deterministic algorithms: bit-identical runs")
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    indicators: IndicatorsConfig = field(default_factory=IndicatorsConfig)

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """This config with other values for dotted keys."""
        return make_config(to_dict(self), [f"{key}={value}" for key, value in values.items()])

    @property
    def run_folder(self) -> Path:
        """The folder of this run."""
        return Path(self.run.dir) / str(self.run.name)

    @property
    def estimator_options(self) -> dict[str, float]:
        """The options of the estimator in use, for ``build_model``."""
        options = ESTIMATORS[self.estimator.name].options
        return {option: getattr(self.estimator, option) for option in options}


LIMITS: dict[str, tuple[float, float]] = {  # both ends allowed
    "seed": (0, 2**32 - 1),
    "model.num_classes": (2, math.inf),
    "estimator.o_end": (1, 1e6),
    "estimator.ede_t_min": (1e-6, 10),
    "estimator.swishsign_b": (1e-6, 1e6),
    "estimator.dsq_a": (1e-6, 1 - 1e-6),
    "estimator.fda_w": (1e-6, 1e6),
    "data.batch_size": (1, math.inf),
    "data.eval_batch_size": (1, math.inf),
    "data.workers": (0, 1024),
    "data.size": (8, 4096),
    "data.resize": (8, 4096),
    "data.min_area": (1e-6, 1),
    "train.epochs": (1, math.inf),
    "train.label_smoothing": (0, 0.999),
    "train.ema_decay": (0, 1 - 1e-9),
    "train.timeout": (1, 1e9),
    "optim.lr": (0, 1e6),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, 1e6),
    "optim.warmup_epochs": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "checkpoint.every_epochs": (1, math.inf),
    "checkpoint.every_steps": (0, math.inf),
    "log.every": (1, math.inf),
    "log.eta": (0, math.inf),
    "indicators.samples": (2, math.inf),
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file, changed by ``key=value`` strings.

    Raises:
        UserError: no such file, no YAML, an unknown key, a wrong type or a bad value; the message
            names the key.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"config {path}: {reason}; take one of configs/*.yaml") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config {path} is not valid YAML: {reason}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} must hold keys and values, not {type(values).__name__}")
    return make_config(values, overrides, name=path.stem)


def make_config(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str | None = None
) -> Config:
    """The config of nested ``values`` over the defaults; ``name`` stands in for run.name."""
    config = _merge(OmegaConf.structured(Config), {"run": {"name": name}})
    config = _merge(config, OmegaConf.create(dict(values)))
    for override in overrides:
        config = _merge(config, _parse(override), override)
    for full, value in _walk(OmegaConf.to_container(config)):  # type: ignore[arg-type]
        if isinstance(value, str) and "${" in value:
            # They would read the environment, and with it keys, into config.yaml.
            raise UserError(f"{full} is {value!r}; write it out, ${{...}} is not filled in")
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from None
    assert isinstance(result, Config)
    _check(result)
    return result


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """The config as one dict from dotted keys to values."""
    return dict(_walk(to_dict(config)))


def _walk(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _parse(override: str) -> DictConfig:
    if "=" not in override:
        raise UserError(f"override {override!r} has no '='; write key=value, such as optim.lr=0.05")
    name, _, value = override.partition("=")
    try:
        return OmegaConf.from_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        raise UserError(f"{name}: {value!r} is not a valid YAML value; put it in quotes") from None


def _merge(config: DictConfig, values: Any, source: str = "") -> DictConfig:
    try:
        merged = OmegaConf.merge(config, _spell(OmegaConf.create(values)))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(_one_line(error, source)) from None
    assert isinstance(merged, DictConfig)
    return merged


def _spell(values: DictConfig) -> DictConfig:
    """``values`` with words where a choice of auto, true and false was read as a boolean."""
    for name in ("train.sync_bn", "train.cuda_graph", "train.compile"):
        if isinstance(value := OmegaConf.select(values, name), bool):
            OmegaConf.update(values, name, str(value).lower())
    return values


def _one_line(error: Exception, source: str = "") -> str:
    message = " ".join(str(error).splitlines()[0].split())
    full_key = getattr(error, "full_key", None) or ""
    if "not in" in message and full_key:
        close = difflib.get_close_matches(full_key, flatten(Config()), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "the README lists all keys"
        return f"{full_key} is no config key; {hint}"
    return f"{full_key or source or 'config'}: {message}"


def _check(config: Config) -> None:
    for name, value in flatten(config).items():
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            limit = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise UserError(f"{name} is {value}; it must be {limit}")
    for name, value, known in (
        ("model.arch", config.model.arch, list(ARCHS)),
        ("estimator.name", config.estimator.name, list(ESTIMATORS)),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    if config.optim.warmup_epochs >= config.train.epochs and config.optim.warmup_epochs:
        raise UserError(
            f"optim.warmup_epochs is {config.optim.warmup_epochs}; it must be below "
            f"train.epochs ({config.train.epochs})"
        )
    if config.data.resize < config.data.size:
        raise UserError(
            f"data.resize is {config.data.resize}; it must be at least data.size "
            f"({config.data.size})"
        )
    name = config.run.name or ""
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"run.name is {name!r}; it must be the plain name of a folder in run.dir")


def table() -> str:
    """Every key with its default and meaning, as a Markdown table."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section in dataclasses.fields(Config):
        inner = section.default_factory
        if inner is dataclasses.MISSING:
            rows.append(_row(section.name, section))
            continue
        rows += [_row(f"{section.name}.{each.name}", each) for each in dataclasses.fields(inner())]
    return "\n".join(rows)


def _row(name: str, entry: "dataclasses.Field[Any]") -> str:
    default = OmegaConf.to_yaml(OmegaConf.create({"v": entry.default}))[3:].strip()
    meaning = entry.metadata["meaning"].replace("|", "\\|")
    return f"| `{name}` | `{default}` | {meaning} |"


if __name__ == "__main__":
    print(table())
