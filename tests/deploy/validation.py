"""Whether an object has the fields that its kind has, strictly: an unknown field is an error."""

import functools
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

from tests.deploy.manifests import Manifest, named

SCHEMAS = Path(__file__).parent / "schemas"
OLDEST_CLUSTER = "1.30"  # the first in which a container may sleep before it stops
# The package reads some megabytes anew for each object; once is enough.
utils.schema_contents = functools.cache(utils.schema_contents)


def validate(manifest: Manifest, version: str) -> None:
    """Check one object of Kubernetes `version`, or a custom resource by its schema here."""
    own = SCHEMAS / f"{manifest['kind'].lower()}.json"
    try:
        if own.exists():
            _validator(own).validate(manifest)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        pytest.fail(f"{named(manifest)}: {where}: {error.message}")


@functools.cache
def _validator(path: Path) -> jsonschema.Draft202012Validator:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)
