"""The configuration of a run: a YAML file and overrides, checked by pydantic."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kgrec_fast.training.metrics import METRICS, metric_names
from kgrec_fast.training.protocol import implied_settings


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names field, value and what was expected."""


def _no_bool(value: Any) -> Any:
    # YAML reads `yes` and `on` as true, which would silently become 1.
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


_Int = Annotated[int, BeforeValidator(_no_bool)]
_Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
PositiveInt = Annotated[_Int, Field(gt=0)]
NonNegativeInt = Annotated[_Int, Field(ge=0)]
PositiveFloat = Annotated[_Float, Field(gt=0)]
NonNegativeFloat = Annotated[_Float, Field(ge=0)]
Share = Annotated[_Float, Field(ge=0, lt=1)]
# More than any machine has cores. Far more, which the first op would start, can stop a machine.
MAX_THREADS = 1024
Seed = Annotated[NonNegativeInt, Field(lt=2**63)]  # it goes into an int64 tensor
FieldName = Literal["user", "item", "rating", "head", "relation", "tail", "entity"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DatasetConfig(_Section):
    """Which data, and how they are read."""

    name: str | None = Field(default=None, description="a known name, or the path of a folder")
    format: Literal["auto", "atomic", "kgat"] = Field(
        default="auto", description="layout of the files"
    )
    min_rating: _Float | None = Field(
        default=None, description="ratings below this are no positives"
    )
    recbole_items: bool = Field(default=False, description="choose the items as RecBole does")
    inverse: bool | None = Field(
        default=None, description="add inverse relations; the format's habit"
    )
    split: Literal["auto", "given", "random", "published"] = Field(
        default="auto", description="where splits come from"
    )
    carve_valid: bool = Field(
        default=True, description="take valid out of train where it is not given"
    )
    split_seed: NonNegativeInt = Field(default=2024, description="seed of a random split")
    fields: dict[FieldName, str] = Field(default={}, description="names of fields in atomic files")


class ModelConfig(_Section):
    """KGRec's hyper-parameters under their published names, with the published defaults."""

    embedding_size: PositiveInt = 64
    reg_weight: NonNegativeFloat = 1e-5
    context_hops: PositiveInt = 2
    node_dropout_rate: Share = Field(default=0.5, description="share of KG edges kept in a step")
    mess_dropout_rate: Share = 0.1
    mae_coef: NonNegativeFloat = 0.1
    mae_msize: PositiveInt = 256
    cl_coef: NonNegativeFloat = 0.01
    cl_tau: PositiveFloat = 1.0
    cl_drop: Share = 0.5
    samp_func: Literal["torch", "np"] = "torch"
    published_quirks: bool = Field(
        default=False,
        description="sample as the paper's code does where the method does not ask it",
    )

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.embedding_size % 2:
            raise ValueError("embedding_size should be even, for the layer has two heads")
        return self


class TrainingConfig(_Section):
    """The loop: BPR on sampled negatives, Adam, early stopping."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 2048
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    seed: Seed = 2024
    eval_every: PositiveInt = Field(default=5, description="epochs between evaluations")
    patience: PositiveInt = Field(
        default=10, description="evaluations without gain before the run stops"
    )
    device: str = Field(
        default="auto", description="auto: CUDA where that works and our kernels are built, or cpu"
    )
    cuda_graph: bool | None = Field(
        default=None,
        description="capture steps in a CUDA graph; where the device is CUDA if absent",
    )
    record_steps: bool | None = Field(
        default=None,
        description="call the operators of a recorded step, without Python in between; on the CPU "
        "if absent",
    )
    threads: Annotated[PositiveInt, Field(le=MAX_THREADS)] | None = Field(
        default=None, description="CPU threads; torch's choice if absent"
    )


class EvaluationConfig(_Section):
    """What is measured, and by which metric the best epoch is chosen."""

    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    best_by: str = "ndcg@10"
    protocol: Literal["default", "paper"] = Field(
        default="default",
        description="paper: as the paper's code, which chooses the epoch on test",
    )

    @model_validator(mode="after")
    def _best_by_is_measured(self) -> EvaluationConfig:
        if self.best_by not in metric_names(self.ks):
            raise ValueError(
                f"best_by should be one of {', '.join(METRICS)}, then @ and one of the ks "
                f"{list(self.ks)}, got {self.best_by!r}"
            )
        return self


class Config(_Section):
    """Everything that determines a run."""

    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def to_yaml(self) -> str:
        """The whole configuration, defaults included; `load_config` reads it back unchanged."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text


def load_config(
    path: Path | None = None,
    *,
    preset: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> Config:
    """Defaults, a preset, a YAML file, overrides, ``key=value`` assignments: the later one counts.

    Where ``evaluation.protocol`` is not the default, what it implies comes before all of these.

    Args:
        path: a YAML file of sections, or None.
        preset: values by dotted name, or None.
        overrides: values by dotted name, such as ``training.lr``; None means not given.
        assignments: texts like ``training.lr=0.01``, the value read as YAML.

    Raises:
        ConfigError: naming each wrong field, its value and what was expected.
    """
    tree: dict[str, Any] = {}
    for name, value in (preset or {}).items():
        _assign(tree, name, value)
    for section, fields in (read_yaml(path) if path is not None else {}).items():
        known = tree.setdefault(section, {})
        tree[section] = {**known, **fields} if isinstance(fields, dict) else fields
    for name, value in (overrides or {}).items():
        if value is not None:
            _assign(tree, name, value)
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set: got {text!r}, expected key=value like training.lr=0.01")
        try:
            _assign(tree, name.strip(), yaml.safe_load(value))
        except (yaml.YAMLError, ValueError):  # the latter: a date that does not exist
            raise ConfigError(f"{name.strip()}: got {value!r}, expected a YAML value") from None
    for name, value in implied_settings(tree).items():
        _assign(tree, name, value, anew=False)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Checks a tree of sections.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors())) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping (or nothing).

    Raises:
        ConfigError: naming file, line and reason.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ConfigError(f"{path}{where}: {problem}") from None
    except ValueError as error:  # a date that does not exist
        raise ConfigError(f"{path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: got a {type(tree).__name__}, expected a mapping of sections")
    for section, value in list(tree.items()):
        if value is None:  # a section whose every line is commented out
            tree[section] = {}
    return tree


def _assign(tree: dict[str, Any], name: str, value: Any, anew: bool = True) -> None:
    """Sets a value by its dotted name; without ``anew`` only where there is none."""
    *sections, field = name.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{section}: got {branch!r}, expected a mapping of fields")
        tree = branch
    if anew or field not in tree:
        tree[field] = value


def _explain(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown field, expected {_known_fields(error['loc'])}"
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = error["input"]
    if error["type"] == "value_error" and isinstance(given, _Section | dict):
        return f"{name}: {expected}"  # a rule about several fields says what it got itself
    if error["type"] in ("model_type", "model_attributes_type"):
        expected = "should be a mapping of fields"
    return f"{name}: got {given!r}, expected: {expected}"


def _known_fields(location: tuple[Any, ...]) -> str:
    model: Any = Config
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    names = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"one of {', '.join(names)}" + (f" (did you mean {close[0]}?)" if close else "")
