"""Query parameters that a route does not have."""

from fastapi import Request

from server.errors import InvalidRequest


async def known_queries_only(request: Request) -> None:
    """A dependency of routes that filter and page: a filter with a typo in its name would show everything, unfiltered.

    Raises:
        InvalidRequest: a name that is none of the route's own parameters.
    """
    known = [each.alias for each in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(
                f"Unknown query parameter {name[:100]!a}. Valid ones: {', '.join(known) or 'none'}.",
                param=ascii(name[:100])[1:-1],
            )
