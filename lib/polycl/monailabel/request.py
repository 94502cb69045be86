"""The parameters of an inference request, checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycl.errors import InputError, NotFoundError
from polycl.monailabel.folders import IMAGE_SUFFIXES
from polycl.refinement import RefineParameters

NO_REFINEMENT = "none"


@dataclass(frozen=True)
class ImageRequest:
    """The image that a client means, and the form in which it wants the result."""

    image: Path
    extension: str = ".nii.gz"
    compress: bool = True
    allow_any_values: bool = False

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> "ImageRequest":
        """These parameters of any task's request.

        Raises InputError for a parameter of the wrong kind, NotFoundError for an image that is not there.
        """
        dtype = request.get("result_dtype") or "uint8"
        if dtype != "uint8":
            raise InputError(f"result_dtype {dtype!r} is not supported; labels are uint8")
        return cls(
            image=_image(request.get("image")),
            extension=_extension(request.get("result_extension")),
            compress=_flag(request, "result_compress", default=True),
            allow_any_values=_flag(request, "allow_any_values", default=False),
        )


@dataclass(frozen=True)
class SegmentRequest(ImageRequest):
    """What a client asks of a segmentation model: `refine` names a SAM model to refine the result with."""

    labels: tuple[str, ...] | None = None
    refine: str | None = None

    @classmethod
    def parse(cls, request: Mapping[str, Any], labels: Mapping[str, int]) -> "SegmentRequest":
        """The request as MONAI Label hands it to a task; `labels` are the model's, name to id.

        Raises InputError for a parameter of the wrong kind, NotFoundError for an image or label that is not there.
        """
        return cls(**vars(ImageRequest.read(request)), labels=_wanted(request, labels), refine=wanted_engine(request))


def _image(value: object) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise NotFoundError(
            "no such image in this store; POST /activelearning/first or GET /datastore/?output=all names them"
        )
    path = Path(value)
    if not path.exists():
        raise NotFoundError("the image is no longer in the store")
    return path


def _extension(value: object) -> str:
    extension = value or IMAGE_SUFFIXES[0]
    if extension not in IMAGE_SUFFIXES:
        raise InputError(f"result_extension {extension!r} is not supported; use one of {', '.join(IMAGE_SUFFIXES)}")
    return str(extension)


def _flag(request: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = request.get(key)
    if value is None:
        return default
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value not in (True, False):
        raise InputError(f"{key} must be true or false, not {value!r}")
    return bool(value)


def _wanted(request: Mapping[str, Any], labels: Mapping[str, int]) -> tuple[str, ...] | None:
    """Names of the labels asked for by id (`label_prompt`) or by name (`labels`, `label`); None for all of them."""
    names = {index: name for name, index in labels.items()}
    prompt = request.get("label_prompt")
    if prompt is not None and prompt != []:
        ids = prompt if isinstance(prompt, list) else [prompt]
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in ids):
            raise InputError(f"label_prompt must be a list of label ids; they are {_listing(labels)}")
        if unknown := [index for index in ids if index not in names]:
            raise NotFoundError(f"no label has the id {_join(unknown)}; they are {_listing(labels)}")
        return tuple(names[index] for index in ids)
    wanted = _names(request)
    if unknown_names := [name for name in wanted if name not in labels]:
        raise NotFoundError(f"no label {_join(map(repr, unknown_names))}; they are {_listing(labels)}")
    return wanted or None


def _names(request: Mapping[str, Any]) -> tuple[str, ...]:
    value = request.get("labels") or request.get("label") or ()
    if isinstance(value, str):
        # With a label file (Scribbles) MONAI Label puts the path of that file here.
        return () if os.sep in value else (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise InputError("labels must be a list of label names")
    return tuple(value)


def _join(items: Any) -> str:
    return ", ".join(map(str, items))


def _listing(labels: Mapping[str, int]) -> str:
    return _join(f"{index} ({name})" for name, index in sorted(labels.items(), key=lambda item: item[1]))


def wanted_engine(request: Mapping[str, Any]) -> str | None:
    """The engine that the request's `refine` names; None for none. Of a list, the first."""
    value = request.get("refine")
    if isinstance(value, list) and value:
        value = value[0]
    if value is None or value is False or value in ("", NO_REFINEMENT):
        return None
    if not isinstance(value, str):
        raise InputError(f"refine must be the name of a SAM model, or {NO_REFINEMENT!r}")
    return value


def refine_parameters(request: Mapping[str, Any]) -> RefineParameters:
    """The request's `refine_parameters` (an object) and `window`."""
    given = request.get("refine_parameters") or {}
    if not isinstance(given, dict):
        raise InputError(
            f"refine_parameters must be an object; its keys are {', '.join(RefineParameters.model_fields)}"
        )
    values = {} if request.get("window") is None else {"window": request["window"]}
    return RefineParameters(**(values | given))
