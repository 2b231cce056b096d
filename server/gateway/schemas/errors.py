"""The body of every error."""

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """The reason for an error, and the parameter to change."""

    message: str = Field(description="Human-readable reason and remedy.")
    type: str = Field(description="Class of the error in OpenAI's terms, for example invalid_request_error.")
    param: str | None = Field(default=None, description="The parameter at fault, if there is one.")
    code: str | None = Field(default=None, description="Machine-readable reason, for example queue_full.")


class ErrorBody(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail
