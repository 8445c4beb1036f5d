"""`python -m service.openapi` prints the OpenAPI document as YAML.

The checked-in `openapi/openapi.yaml` must equal it; a test holds that.
"""

import sys

import yaml

from service.document import describe


def render() -> str:
    """The document as YAML."""
    return yaml.safe_dump(describe(), sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(render())
