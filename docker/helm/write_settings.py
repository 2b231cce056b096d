"""Write the names of the settings into the chart's values.schema.json: `make format` runs this."""

import json
from pathlib import Path

from server.settings import describe

SCHEMA = Path(__file__).parent / "fluid-serve" / "values.schema.json"
#: Settings that values of the chart's own stand for, and secrets, which belong into Secrets.
OWN = {
    "FLUID_ALLOWED_HOSTS",
    "FLUID_API_KEY",
    "FLUID_API_KEYS",
    "FLUID_API_KEYS_FILE",
    "FLUID_CHECKPOINT",
    "FLUID_DRAIN_S",
    "FLUID_HOST",
    "FLUID_PORT",
    "FLUID_REDIS_URL",
    "FLUID_WEBHOOK_SECRET",
}


def names() -> list[str]:
    """The settings that `settings` may hold."""
    return sorted({name for name, _, _ in describe()} - OWN)


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["$defs"]["settings"]["propertyNames"]["enum"] = names()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
