"""Nobody sweeps a bucket: the rules that the deployments give it outlive every job, and no more."""

import json
import re
import shlex
from collections.abc import Callable

import boto3
import pytest
import yaml

from service.core.settings import Settings
from tests.buckets import KEYS, Bucket
from tests.deploy.manifests import ROOT

DAY_SECONDS = 24 * 3600
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
LONGEST_SECONDS = DEFAULTS["queue_deadline_seconds"] + DEFAULTS["job_retention_seconds"]
"""How long after its upload a job is kept by the defaults, but for the time that it runs."""


def test_the_rule_of_the_readme_is_one_that_s3_takes(make_bucket: Callable[[], Bucket]) -> None:
    [command] = re.findall(
        r"(?ms)^aws s3api put-bucket-lifecycle.*?^```", (ROOT / "k8s" / "README.md").read_text()
    )
    words = shlex.split(command.removesuffix("```"))
    assert words[:4] == ["aws", "s3api", "put-bucket-lifecycle-configuration", "--bucket"]
    rule = json.loads(words[words.index("--lifecycle-configuration") + 1])
    bucket = make_bucket()
    client = boto3.client("s3", endpoint_url=bucket.endpoint, **KEYS)
    client.put_bucket_lifecycle_configuration(Bucket=bucket.name, LifecycleConfiguration=rule)
    [kept] = client.get_bucket_lifecycle_configuration(Bucket=bucket.name)["Rules"]
    client.close()
    assert kept == rule["Rules"][0]
    assert LONGEST_SECONDS < kept["Expiration"]["Days"] * DAY_SECONDS <= 2 * LONGEST_SECONDS


@pytest.mark.parametrize("path", ["docker/compose.yaml", "k8s/chart/trial/store.yaml"])
def test_the_store_that_comes_along_forgets_what_is_older(path: str) -> None:
    text = (ROOT / path).read_text()
    [(prefix, days)] = re.findall(r"fs\.configure -locationPrefix=(\S+) -ttl=(\d+)d -apply", text)
    [made] = re.findall(r"s3\.bucket\.create -name (\w+)", text)
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    assert compose["x-environment"]["IMAGEPROMPT_STORAGE_URL"] == f"s3://{made}"
    assert prefix == f"/buckets/{made}/"
    assert LONGEST_SECONDS < int(days) * DAY_SECONDS <= 2 * LONGEST_SECONDS
