"""The playground: assembles playground/*.{html,css,js} into one self-contained page."""

from functools import lru_cache
from importlib import resources

from server.gateway.pages.self_contained import Page

#: One script, in this order: function declarations are shared, and top-level code may use what stands above it.
SCRIPTS = ("dom", "service", "order", "form", "stage", "generate", "editor", "history", "code", "main")


@lru_cache(maxsize=1)
def playground() -> Page:
    """Assemble the page; the files do not change while the gateway runs."""
    page = _source("index.html")
    page = page.replace("/* style.css */", _source("style.css"))
    page = page.replace("/* theme.js */", _source("theme.js"))
    return Page(page.replace("/* scripts */", "\n".join(_source(f"{name}.js") for name in SCRIPTS)))


def _source(name: str) -> str:
    return (resources.files("server.gateway.pages") / "playground" / name).read_text(encoding="utf-8")
