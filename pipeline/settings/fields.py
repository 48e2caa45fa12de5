"""Kinds of settings: texts that are checked as soon as they are read, and what a setting is."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from pipeline.errors import SettingsError
from pipeline.model.often import OFTEN
from pipeline.settings.schedules import schedule_of
from pipeline.stats.metrics import OBJECTIVES, SHARES
from pipeline.system.disk.files import typed_path
from pipeline.system.disk.sizes import check_size

AUTO: Final = "auto"
_Value = TypeVar("_Value")

ScheduleText = Annotated[str, AfterValidator(lambda text: str(schedule_of(text)) if text else "")]
"""A schedule: a built-in name, a file (which becomes its schedule spelled out), or spelled out."""


def _known_network(name: str) -> str:
    if name in OFTEN:
        return name
    from pipeline.model.networks import check_name  # torch is slow to import

    try:
        check_name(name)
    except SettingsError as err:
        reason = re.sub("^: ", "cannot be used: ", str(err).removeprefix(f"backbone={name}"))
        raise PydanticCustomError("network", "{reason}", {"reason": reason.strip()}) from None
    return name


def _size(pixels: int) -> int:
    if pixels and not 32 <= pixels <= 1024:
        raise PydanticCustomError("size", "must be 0, or from 32 to 1024")
    return pixels


def _usable_blocks(text: str) -> str:
    if text != "auto" and not re.fullmatch("[1-9][0-9]{0,2}", text):
        if not text.endswith((".yaml", ".yml")):
            raise PydanticCustomError(
                "blocks", "must be auto, a number, or the path of a .yaml file"
            )
        typed_path(text, "blocks")
    return text


def numbers_of(text: str) -> tuple[float, ...]:
    """The numbers in a text, with commas between them."""
    return tuple(float(part) for part in text.split(","))


def _three_numbers(text: str, info: ValidationInfo) -> str:
    if text == AUTO:
        return text
    deviation = info.field_name == "std"
    try:
        numbers = numbers_of(text)
    except ValueError:
        numbers = ()
    usable = [0 <= number <= 1 and not (deviation and number == 0) for number in numbers]
    if len(numbers) != 3 or not all(usable):
        limits = "above 0, to 1" if deviation else "from 0 to 1"
        raise PydanticCustomError(
            "numbers",
            "must be auto, or three numbers {limits}, with commas between them",
            {"limits": limits},
        )
    return text


def _per_class(value: object, info: ValidationInfo) -> object:
    text, least = str(value).strip(), 0 if info.field_name == "test_per_class" else 1
    if text == AUTO:
        return AUTO
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        message = "must be auto, or a whole number of {least} or more"
        raise PydanticCustomError("per_class", message, {"least": least, "meant": AUTO})
    return int(text)


PerClass = Annotated[int | Literal["auto"], BeforeValidator(_per_class)]
"""So many images of each class, or a share of those that each class has."""


def _off_or_share(value: object) -> object:
    return 0.0 if value is False or str(value).strip().lower() in ("off", "false") else value


_OTHER_NAMES = {
    "auto": "auto",
    "cpu": "cpu",
    "cuda|gpu|nvidia|rocm|hip": "cuda",
    "mps|metal|apple|(?:apple )?m[1-9](?: ?(?:pro|max|ultra))?": "mps",
}
"""What people call a device, as patterns, and its name here, which is PyTorch's."""


def _named_otherwise(text: str) -> str:
    """The name of what is meant: `cuda:0` for `GPU 0`; empty where that is not known."""
    for pattern, name in _OTHER_NAMES.items():
        if found := re.fullmatch(rf"(?:{pattern})(?:[: ]?([0-9]{{1,2}}))?", text.strip().lower()):
            return f"{name}:{found[1]}" if name == "cuda" and found[1] else name
    return ""


def _device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", text):
        near = get_close_matches(text, ("auto", "cpu", "cuda", "mps"), n=1)
        called = _named_otherwise(text)
        raise PydanticCustomError(
            "device",
            "must be 'auto', 'cpu', 'cuda' or 'mps', or 'cuda:1' for the second of several",
            {"called": called} if called else {"meant": near[0]} if near else {},
        )
    return text


DeviceText = Annotated[str, AfterValidator(_device_name)]
"""A kind of processor, or one of several CUDA devices."""
OffOrShare = Annotated[float, BeforeValidator(_off_or_share), Field(ge=0, le=1)]
"""A number from 0 to 1; `off` is 0."""
BackboneText = Annotated[str, AfterValidator(_known_network)]
"""A network's name, as `backbones.build_backbone` takes it."""
NumbersText = Annotated[str, AfterValidator(_three_numbers)]
Pixels = Annotated[int, AfterValidator(_size)]
BlocksText = Annotated[str, AfterValidator(_usable_blocks)]


def _size_text(value: object) -> object:
    try:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return check_size(f"{value:f}".rstrip("0").rstrip(".") if number else str(value))
    except ValueError as err:
        raise PydanticCustomError("size_text", "{why}", {"why": str(err)}) from None


SizeText = Annotated[str, BeforeValidator(_size_text)]
"""How much of a disk, as `sizes.bytes_of` reads it; earlier versions had numbers of gigabytes."""


def _with_a_home(text: str, info: ValidationInfo) -> str:
    typed_path(text, info.field_name or "")
    return text


PathText = Annotated[str, AfterValidator(_with_a_home)]
"""A path, or a name in place of one. A home folder (`~ann`) that is not there is refused."""
if TYPE_CHECKING:
    ObjectiveName: TypeAlias = str
    ShareName: TypeAlias = str
else:  # the table of metrics lists the names
    ObjectiveName, ShareName = Literal[tuple(OBJECTIVES)], Literal[SHARES]


def setting(default: _Value, description: str, **limits: Any) -> _Value:  # noqa: ANN401
    """A field with its help text; `limits`: pydantic's own (`ge`, `gt`, `min_length`, …)."""
    field: _Value = Field(default, description=description, **limits)
    return field


class StrictModel(BaseModel):
    """Settings that refuse unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )
