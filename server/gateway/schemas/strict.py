"""The base of request bodies: exact types, known names only, valid Unicode."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_COMPARED = 100  # characters of a name: difflib takes a list of numbers for each
SURROGATE = re.compile("[\ud800-\udfff]")


def valid_unicode(text: str) -> str:
    """The text, unless it has an unpaired surrogate. A text of megabytes takes milliseconds."""
    if not text.isascii() and SURROGATE.search(text):
        raise PydanticCustomError("bad_unicode", "contains an unpaired surrogate; send valid Unicode")
    return text


class StrictRequest(BaseModel):
    """A request body that ignores nothing silently."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_names_only(cls, data: Any) -> Any:
        """Reject unknown parameters by name and suggest the nearest valid one; ignoring them would hide typos."""
        if not isinstance(data, dict):
            return data
        for name in data:
            if name not in cls.model_fields:
                close = difflib.get_close_matches(name[:MAX_COMPARED], cls.model_fields, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                valid = ", ".join(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_parameter",
                    "Unknown parameter '{param}'.{hint} Valid parameters: {valid}.",
                    # A response cannot carry an unpaired surrogate.
                    {"param": ascii(name[:100])[1:-1], "hint": hint, "valid": valid},
                )
        return data

    @field_validator("*")
    @classmethod
    def _text_is_unicode(cls, value: Any) -> Any:
        """Reject unpaired surrogates: JSON can spell them, but no file, hash or response can hold them."""
        return valid_unicode(value) if isinstance(value, str) else value
