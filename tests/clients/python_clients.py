"""Runs in an environment of its own: one call of a Python client with its defaults; prints the sizes of the images."""

import base64
import io
import json
import os
import struct
import sys
import urllib.request
import zlib

BASE_URL = os.environ.get("FLUID_TEST_BASE_URL", "")  # ends with /v1
KEY = os.environ.get("FLUID_TEST_KEY", "unused")
PROMPT = "a cat"


def png(side: int = 32) -> bytes:
    """An opaque red square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image_file() -> io.BytesIO:
    file = io.BytesIO(png())
    file.name = "square.png"
    return file


def bytes_of(image: object) -> bytes:
    """The bytes of an element of `data`, however the client presents it."""
    found = image if isinstance(image, dict) else image.model_dump()  # type: ignore[attr-defined]
    if found.get("b64_json"):
        return base64.b64decode(found["b64_json"])
    return urllib.request.urlopen(found["url"]).read()


def openai_generate() -> list[bytes]:
    import openai

    with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
        return [bytes_of(image) for image in client.images.generate(prompt=PROMPT).data]


def openai_generate_gpt_image() -> list[bytes]:
    import openai

    with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
        return [bytes_of(image) for image in client.images.generate(prompt=PROMPT, model="gpt-image-1").data]


def openai_stream() -> list[bytes]:
    import openai

    with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
        events = list(client.images.generate(prompt=PROMPT, model="gpt-image-1", stream=True))
    assert events[-1].type == "image_generation.completed", events[-1].type
    return [base64.b64decode(events[-1].b64_json)]


def openai_edit() -> list[bytes]:
    import openai

    with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
        return [bytes_of(image) for image in client.images.edit(image=image_file(), prompt=PROMPT).data]


def openai_edit_list() -> list[bytes]:
    import openai

    with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
        answer = client.images.edit(model="gpt-image-1", image=[image_file()], prompt=PROMPT)
    return [bytes_of(image) for image in answer.data]


def openai_variation() -> list[bytes]:
    import openai

    with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
        return [bytes_of(image) for image in client.images.create_variation(image=image_file()).data]


def langchain_dalle() -> list[bytes]:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    wrapper = DallEAPIWrapper(base_url=BASE_URL, api_key=KEY)
    return [urllib.request.urlopen(url).read() for url in wrapper.run(PROMPT).split(wrapper.separator)]


def litellm_generate() -> list[bytes]:
    import litellm

    answer = litellm.image_generation(prompt=PROMPT, model="openai/dall-e-3", api_base=BASE_URL, api_key=KEY)
    return [bytes_of(image) for image in answer.data]


def litellm_edit() -> list[bytes]:
    import litellm

    answer = litellm.image_edit(
        image=image_file(), prompt=PROMPT, model="openai/gpt-image-1", api_base=BASE_URL, api_key=KEY
    )
    return [bytes_of(image) for image in answer.data]


def size_of(image: bytes) -> tuple[int, int]:
    assert image[:8] == b"\x89PNG\r\n\x1a\n", image[:16]
    return struct.unpack(">II", image[16:24])  # type: ignore[return-value]


if __name__ == "__main__":
    print(json.dumps([size_of(image) for image in globals()[sys.argv[1]]()]))
