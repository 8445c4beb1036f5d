"""Who may use a route: parameters that routes declare. How callers are told is in `gate.py`."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from service.api_keys import Right
from service.core.errors import Forbidden
from service.dependencies import Use
from service.gate import Caller


def _needing(right: Right) -> Callable[..., Any]:
    async def caller(request: Request, services: Use) -> Caller:
        found = await services.gate.admit(request.headers)
        if found.key is not None and right not in found.key.rights:
            raise Forbidden(f"This API key lacks the right {right.value!r}")
        return found

    return caller


Generates = Annotated[Caller, Depends(_needing(Right.GENERATE))]
"""A route's parameter of this type needs the right to generate."""
Reads = Annotated[Caller, Depends(_needing(Right.READ))]
"""A route's parameter of this type needs the right to read jobs."""
Manages = Annotated[Caller, Depends(_needing(Right.MANAGE))]
"""A route's parameter of this type needs the right to cancel and delete jobs."""
