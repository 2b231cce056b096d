"""The body of every error."""

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error has this shape, as OpenAI's."""

    error: ErrorDetail
