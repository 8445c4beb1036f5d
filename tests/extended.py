"""The service with four more declared fields: `python -m tests.extended MODULE [OPTION...]`.

Nothing but the declaration differs: MODULE (the API, the command line, the OpenAPI document) runs
as it is.
"""

import runpy
import sys
from typing import Annotated

from pydantic import Field

from service.core import params
from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest
from service.core.schema import Files, OnlyWith, Public


class ExtendedRequest(GenerateRequest):
    """A parameter and an upload that clients may see, and one of each that they may not."""

    glow: Annotated[
        float, Public(), Field(ge=0, le=1, description="How much the picture glows.")
    ] = 0.25
    glow_image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_most=2),
        Public(),
        Field(description="Where it glows."),
    ] = ()
    glow_blur: Annotated[
        int | None,
        OnlyWith("glow_image", default=3),
        Public(),
        Field(ge=0, description="Pixels."),
    ] = None
    note: Annotated[str, Field(max_length=20, description="For the operator.")] = ""
    note_image: Annotated[
        tuple[StoredUpload, ...], Files(), Field(description="For the operator.")
    ] = ()


if __name__ == "__main__":
    params.GenerateRequest = ExtendedRequest
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
