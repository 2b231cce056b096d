"""Headers that tell browsers to be careful with a response."""

#: On every response: no MIME sniffing, no framing, no referrer, no use by pages of other sites.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: On images that are opened by a signed link, which whoever has it may show, on a page of their own too.
LINK_HEADERS = SECURITY_HEADERS | {"Cross-Origin-Resource-Policy": "cross-origin"}
