"""The HTTP protocol that both clients speak: request bodies, responses and errors, without a connection."""

import base64
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import httpx

from server.addresses import is_loopback, without_password
from server.batch_format import URL
from server.client.results import GeneratedImage, Preview
from server.errors import ServiceError

C = TypeVar("C")
Background = Literal["auto", "opaque", "transparent"]


def http_options(base_url: str, api_key: str | None, timeout_s: float, use_proxy: bool) -> dict[str, Any]:
    """Arguments of httpx.Client and httpx.AsyncClient.

    Raises:
        ServiceError: the URL or the key could never be used. The key is not shown.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ServiceError(f"The service's URL cannot be read: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ServiceError(f"{without_password(base_url)!r} is not the URL of a service: give http://HOST:PORT.")
    api_key = api_key or os.environ.get("FLUID_API_KEY")
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ServiceError(
            "The API key holds a line break, a space or a character outside ASCII, which no HTTP header can carry: "
            "copy it again, without what stands around it."
        )
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {
        "base_url": base_url,
        "timeout": timeout_s,
        "headers": headers,
        "trust_env": use_proxy and not is_loopback(url.host),
    }


def open_client(kind: Callable[..., C], options: Mapping[str, Any]) -> C:
    """Make an httpx client. Raises ServiceError if the environment names a proxy that httpx cannot use."""
    try:
        return kind(**options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ServiceError(
            f"The environment's proxy or certificate settings (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be "
            f"used: {type(error).__name__}. Correct or unset them."
        ) from error


def idempotency_key() -> dict[str, str]:
    """A header for one call and all its retries: a request whose response was lost is not generated twice."""
    return {"Idempotency-Key": str(uuid.uuid4())}


# --- requests ---------------------------------------------------------------------------------------------


def multipart(image: bytes, mask: bytes | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """httpx arguments for the multipart form of an edit or a variation."""
    files = {"image": ("image", image)} | ({} if mask is None else {"mask": ("mask", mask)})
    data = {
        name: list(value) if isinstance(value, list | tuple) else str(value)
        for name, value in options.items()
        if value is not None
    }
    return {"files": files, "data": data | {"response_format": "b64_json"}, "headers": idempotency_key()}


def batch_upload(lines: bytes, filename: str) -> dict[str, Any]:
    """httpx arguments for the upload of a batch's input file."""
    return {"files": {"file": (filename, lines)}, "data": {"purpose": "batch"}}


def batch_request(file_id: str, key: str) -> dict[str, Any]:
    """httpx arguments for the start of a batch; an empty key means a new one."""
    body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
    return {"json": body, "headers": {"Idempotency-Key": key} if key else idempotency_key()}


# --- responses --------------------------------------------------------------------------------------------


def images(body: Mapping[str, Any]) -> list[GeneratedImage]:
    """The images of a response with b64_json data."""
    shared = body["output_format"], body["metrics"], tuple(body["warnings"])
    return [GeneratedImage(base64.b64decode(item["b64_json"]), item["seed"], *shared) for item in body["data"]]


def with_warnings(generated: list[GeneratedImage], warnings: list[str]) -> list[GeneratedImage]:
    """Copy the images, with `warnings` added before their own."""
    return [replace(image, warnings=(*warnings, *image.warnings)) for image in generated]


def stream_item(data: Mapping[str, Any]) -> Preview | GeneratedImage:
    """Decode one event of a streamed generation; ServiceError if it reports a failure."""
    if "error" in data:
        raise service_error(data["error"], 200)
    file = base64.b64decode(data["b64_json"])
    if data["type"].endswith("partial_image"):
        return Preview(file, data["image_index"], data["partial_image_index"], data["output_format"])
    return GeneratedImage(file, data["seed"], data["output_format"], {})


# --- errors -----------------------------------------------------------------------------------------------


def checked(response: httpx.Response) -> httpx.Response:
    """Return a successful response, raise ServiceError otherwise. The body must have been read."""
    if response.is_success:
        return response
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # a proxy in between may send its own error page
        error = {"message": response.text[:500]}
    raise service_error(error, response.status_code)


def json_object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a successful response; ServiceError if something else than the service sent it."""
    try:
        return dict(response.json())
    except (ValueError, TypeError) as error:
        raise ServiceError(
            f"{response.url.copy_with(username=None, password=None)} answered {response.status_code} without a JSON "
            "object: is it the address of a Fluid Serve?",
            status=response.status_code,
        ) from error


def service_error(error: Mapping[str, Any], status: int) -> ServiceError:
    """The exception for an OpenAI-shaped error object."""
    return ServiceError(
        f"{status}: {error['message']}", status=status, code=error.get("code"), param=error.get("param")
    )


def no_alpha(model: str) -> ServiceError:
    """The exception for a transparent background that the model cannot have; nothing was generated."""
    return ServiceError(
        f"{model} generates no alpha: 'background' transparent is for models whose 'transparent' is true in "
        "GET /v1/models. Ask for opaque instead.",
        status=400, code="invalid_value", param="background",
    )  # fmt: skip


def unreachable(base_url: object, error: Exception) -> ServiceError:
    """The exception for a failed connection; its status is 0."""
    return ServiceError(f"No response from {without_password(str(base_url))}: {error}. Is `fluid serve` running?")
