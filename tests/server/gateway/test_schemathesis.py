"""Fuzz every operation of /openapi.json with schemathesis, with valid and with invalid requests.

No response may be a server error, and every response must be one that the schema documents. The requests are the same
every time; for a longer search: `SCHEMATHESIS_EXAMPLES=1000 pytest tests/server/gateway/test_schemathesis.py`.
"""

from __future__ import annotations

import os

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    NotAServerErrorConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from server.gateway.app import create_app
from server.settings import Settings
from tests.server.harness import Service

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "40"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

GENERATION = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
# 504 is the correct response to "deadline_ms": 1; any other 5xx is a defect.
ALLOWED = ChecksConfig(not_a_server_error=NotAServerErrorConfig(expected_statuses=["2xx", "3xx", "4xx", "504"]))
CONFIG = SchemathesisConfig(projects=ProjectsConfig(default=ProjectConfig(generation=GENERATION, checks=ALLOWED)))
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=CONFIG)


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_operation_responds_as_documented(case: schemathesis.Case, service: Service) -> None:
    # All values of a form are text, so a value that is invalid as JSON may be valid there.
    strict = [] if case.media_type == "multipart/form-data" else [negative_data_rejection]
    case.call_and_validate(base_url=service.settings.base_url, checks=[*CHECKS, *strict], timeout=60)
