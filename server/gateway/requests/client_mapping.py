"""Map the defaults of OpenAI's clients onto this service's models, sizes and presets, as the operator allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.errors import SettingError
from server.settings import Settings

#: OpenAI's older names of qualities -> presets.
QUALITY_ALIASES = {"standard": "medium", "hd": "high"}


@dataclass(frozen=True, slots=True)
class ClientMapping:
    """What a request may ask for that no model has, and what it gets instead."""

    aliases: Mapping[str, str] = field(default_factory=dict)  #: model name in requests -> id of a model
    nearest_size: bool = False  #: generate the nearest size instead of refusing one
    response_format: str = "b64_json"  #: of responses whose request does not choose one

    @classmethod
    def from_settings(cls, settings: Settings) -> "ClientMapping":
        """Parse FLUID_MODEL_ALIASES, FLUID_SIZE_POLICY and FLUID_RESPONSE_FORMAT.

        Raises:
            SettingError: an alias is not NAME=MODEL, or a name occurs twice.
        """
        aliases: dict[str, str] = {}
        for text in filter(None, map(str.strip, settings.model_aliases.split(","))):
            name, equals, model = (part.strip() for part in text.partition("="))
            if not (name and equals and model) or name in aliases:
                raise SettingError(
                    f"FLUID_MODEL_ALIASES: {text!r} must be NAME=MODEL, with every name once; for example "
                    "dall-e-3=atlas-128,gpt-image-1=atlas-128."
                )
            aliases[name] = model
        return cls(aliases, settings.size_policy == "nearest", settings.response_format)

    def default_response_format(self, model: str | None, *, stream: bool) -> str:
        """OpenAI's gpt-image models and all its streams send base64 alone, and their clients cannot read a link."""
        return "b64_json" if stream or (model or "").startswith("gpt-image") else self.response_format


NO_MAPPING = ClientMapping()
