"""Reject query parameters that a route does not define."""

from fastapi import Request

from server.errors import InvalidRequest


async def reject_unknown_query_params(request: Request) -> None:
    """Reject misspelled filters, as a FastAPI dependency of listing routes: ignoring one would list everything.

    Raises:
        InvalidRequest: the query has a parameter that the route does not define.
    """
    known = [each.alias for each in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(
                f"Unknown query parameter {name[:100]!a}. Valid ones: {', '.join(known) or 'none'}.",
                param=ascii(name[:100])[1:-1],
            )
