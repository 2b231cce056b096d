"""The image sets of the breadth: style as captions call it, package, author, licence, and which of its icons count."""

from __future__ import annotations

from dataclasses import dataclass

from model.data.sources import SCENE_SOURCES, Source

_STREAMLINE = ("Streamline", "CC-BY-4.0", "https://www.streamlinehq.com")

# Emoji sets beyond those of scenes; all are found by code point.
EMOJI_SOURCES = (
    *SCENE_SOURCES,
    Source("gradient", "@iconify-json/fluent-emoji@1.2.7", "Fluent Emoji (gradient)", "Microsoft Corporation", "MIT",
           "https://github.com/microsoft/fluentui-emoji"),
)  # fmt: skip
# Found by name: its icons are called "alarmclock", its package has no code points.
FIREFOX = Source("firefox", "@iconify-json/fxemoji@1.2.2", "Firefox OS Emoji", "Mozilla", "Apache-2.0",
                 "https://github.com/mozilla/fxemoji")  # fmt: skip


@dataclass(frozen=True, slots=True)
class IconSet:
    """An Iconify set whose icons are found by name.

    Attributes:
        source: its style is that of icons without `suffix`.
        suffix: ending of icon names that marks a second style, or "".
        second_style: that style.
        skipped: categories of the package's metadata that hold symbols of user interfaces.
        one_colour: the set has no colours of its own; captions name the colour that it is drawn in.
    """

    source: Source
    suffix: str = ""
    second_style: str = ""
    skipped: frozenset[str] = frozenset()
    one_colour: bool = False


_INTERFACE = frozenset(
    {
        "InterfaceEssential",
        "Mail",
        "Programming",
        "Phone",
        "ArtificialIntelligence",
        "Logos",
        "ArrowsDiagrams",
        "Content",
        "Emails",
        "FilesFolders",
        "InternetNetworksServers",
        "ProgramingAppsWebsites",
        "MessagesChatSmileys",
        "ComputerCoding",
        "EmailMessages",
        "MailChatSmiley",
        "DatabaseNetwork",
        "InternetWebsite",
        "EmailPhone",
        "Flags",
        "Symbols",
        "SocialMediasRewardsRating",
        "MoneyPaymentsFinance",
        "WorkOfficeCompanies",
        "Business",
        "BusinessProducts",
    }
)


def _streamline(style: str, name: str, version: str = "1.2.2", suffix: str = "", second: str = "") -> IconSet:
    author, licence, url = _STREAMLINE
    title = f"Streamline {name.removeprefix('streamline-').replace('-', ' ').title()}"
    source = Source(style, f"@iconify-json/{name}@{version}", title, author, licence, url)
    return IconSet(source, suffix, second, _INTERFACE)


ICON_SETS = (
    _streamline("outline", "streamline-color", suffix="-flat", second="duotone"),
    _streamline("flex outline", "streamline-flex-color", suffix="-flat", second="flex duotone"),
    _streamline("plump outline", "streamline-plump-color", suffix="-flat", second="plump duotone"),
    _streamline("sharp outline", "streamline-sharp-color", suffix="-flat", second="sharp duotone"),
    _streamline("kameleon", "streamline-kameleon-color", suffix="-duo", second="kameleon duotone"),
    _streamline("sticker", "streamline-stickies-color", suffix="-duo", second="sticker duotone"),
    _streamline("cyber", "streamline-cyber-color"),
    _streamline("ultimate", "streamline-ultimate-color"),
    _streamline("freehand", "streamline-freehand-color"),
    _streamline("streamline", "streamline-emojis", version="1.2.4"),
    IconSet(Source("flat icon", "@iconify-json/flat-color-icons@1.2.3", "Flat Color Icons", "Icons8", "MIT",
                   "https://github.com/icons8/flat-Color-icons")),
    IconSet(Source("fluent icon", "@iconify-json/fluent-color@1.2.21", "Fluent UI System Color Icons",
                   "Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-system-icons")),
    IconSet(Source("weather", "@iconify-json/meteocons@1.2.4", "Meteocons", "Bas Milius", "MIT",
                   "https://github.com/basmilius/weather-icons"), "-fill", "filled weather"),
    IconSet(Source("marketeq", "@iconify-json/marketeq@1.2.2", "Marketeq", "Marketeq", "MIT",
                   "https://www.figma.com/community/file/1105456315188600519")),
    IconSet(Source("silhouette", "@iconify-json/game-icons@1.2.4", "Game Icons",
                   "Lorc, Delapouite and contributors (game-icons.net)", "CC-BY-3.0", "https://game-icons.net"),
            one_colour=True),
)  # fmt: skip

# A prompt without a style draws the first of these that its thing has.
STYLE_PREFERENCE = (
    *(source.style for source in EMOJI_SOURCES), "firefox", "streamline", "clipart", "outline", "duotone",
    "plump outline", "plump duotone", "flex outline", "flex duotone", "sharp outline", "sharp duotone", "ultimate",
    "freehand", "cyber", "kameleon", "kameleon duotone", "sticker", "sticker duotone", "fluent icon", "flat icon",
    "marketeq", "weather", "filled weather", "silhouette",
)  # fmt: skip
