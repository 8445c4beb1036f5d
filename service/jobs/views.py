"""The JSON of the contract: a job and a page of jobs as a client sees them."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from service.api_keys import ANONYMOUS
from service.core.job import Job, JobError, JobMetrics, JobWarning, Status
from service.core.param_types import Sha256
from service.core.params import GenerateRequest
from service.core.schema import input_model, show
from service.jobs.eta import Estimates
from service.jobs.store import FoundJob, JobRecord
from service.signed_urls import SignedUrls, Signer

_RENDERED: Final = 1024
"""Jobs whose JSON is kept, each some 5 kB."""
_ETA: Final = b'"eta_seconds":null'


class Progress(BaseModel):
    """Denoising steps done, and in total."""

    step: int = Field(examples=[12])
    total: int = Field(examples=[30])


class _InputSchema:
    """Describes `input` by the model that is derived from the parameters."""

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(input_model(GenerateRequest).__pydantic_core_schema__)


class OutputImage(BaseModel):
    """One finished picture. Width and height in pixels."""

    url: str
    content_type: str
    width: int
    height: int
    seed: int
    sha256: Sha256


class OutputMap(BaseModel):
    """One control map that the service made of a picture. Width and height in pixels."""

    url: str
    content_type: str
    width: int
    height: int
    sha256: Sha256


class Urls(BaseModel):
    """Links of the job."""

    self: str
    cancel: str
    events: str


class JobView(BaseModel):
    """A job."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: Annotated[
        datetime | None, Field(description="When the record and its pictures are deleted.")
    ]
    queue_position: Annotated[int | None, Field(description="Jobs ahead; null once it runs.")]
    eta_seconds: Annotated[float | None, Field(description="Until it ends; null if unknown.")]
    progress: Progress
    input: Annotated[dict[str, Any], _InputSchema()]
    images: list[OutputImage]
    maps: Annotated[
        list[OutputMap], Field(description="Control maps made by `control_preprocess`.")
    ]
    error: JobError | None
    warnings: list[JobWarning]
    metrics: JobMetrics
    urls: Urls


class JobPage(BaseModel):
    """Some of the caller's jobs, newest first."""

    jobs: list[JobView]
    next: Annotated[str | None, Field(description="URL of the next page; null on the last one.")]


def job_view(
    job: Job,
    *,
    base: str,
    ahead: int | None,
    eta_seconds: float | None,
    signer: Signer | None = None,
) -> JobView:
    """A job as its client sees it; `base` is the URL of the service with a slash at its end.

    With a `signer` the URLs of pictures and events need no API key.
    """
    path = f"jobs/{job.id}"
    url = f"{base}{path}"

    def signed(part: str) -> str:
        return f"{url}/{part}" + (signer.sign(f"{path}/{part}") if signer else "")

    return JobView(
        id=job.id,
        status=job.status,
        created_at=_moment(job.created_at),
        started_at=None if job.started_at is None else _moment(job.started_at),
        completed_at=None if job.completed_at is None else _moment(job.completed_at),
        expires_at=None if job.expires_at is None else _moment(job.expires_at),
        queue_position=ahead,
        eta_seconds=eta_seconds,
        progress=Progress(step=job.step, total=_count(job.request.steps)),
        input=show(job.request),
        images=[
            OutputImage(
                url=signed(f"images/{number}"),
                content_type=image.content_type,
                width=image.width,
                height=image.height,
                seed=image.seed or 0,
                sha256=image.sha256,
            )
            for number, image in enumerate(job.images)
        ],
        maps=[
            OutputMap(
                url=signed(f"maps/{number}"),
                content_type=image.content_type,
                width=image.width,
                height=image.height,
                sha256=image.sha256,
            )
            for number, image in enumerate(job.maps)
        ],
        error=job.error,
        warnings=list(job.warnings),
        metrics=job.metrics,
        urls=Urls(self=url, cancel=f"{url}/cancel", events=signed("events")),
    )


@dataclass(frozen=True, slots=True)
class RenderedJob:
    """The JSON of a job, but for its estimate, which changes from moment to moment."""

    etag: str
    """Weak (RFC 9110, section 8.8.1): it stands for everything but `eta_seconds`."""
    before: bytes
    after: bytes

    def body(self, eta_seconds: float | None) -> bytes:
        """The whole JSON."""
        eta = b"null" if eta_seconds is None else b"%.1f" % eta_seconds
        return b'%b"eta_seconds":%b%b' % (self.before, eta, self.after)


class JobViews:
    """Renders jobs for their owners; what has not changed since is not rendered again.

    Methods raise `redis.RedisError`.
    """

    def __init__(self, estimates: Estimates, signed_urls: SignedUrls) -> None:
        self._estimates = estimates
        self._signed_urls = signed_urls
        self._rendered: OrderedDict[str, tuple[object, RenderedJob]] = OrderedDict()
        """By the job's id, what the rendered job depends on, and itself."""

    async def show(self, found: FoundJob, *, base: str) -> JobView:
        """The view of a job."""
        job = found.job
        return job_view(
            job,
            base=base,
            ahead=found.ahead,
            eta_seconds=await self._estimates.eta_seconds(job, found.ahead),
            signer=await self._signer(job.owner),
        )

    async def render(self, record: JobRecord, *, base: str) -> RenderedJob:
        """The JSON of a job."""
        signer = await self._signer(record.fields["owner"])
        source = (record.fields, record.ahead, base, signer)
        seen, rendered = self._rendered.get(record.id, (None, None))
        if rendered is None or seen != source:
            job = record.parse().job
            view = job_view(job, base=base, ahead=record.ahead, eta_seconds=None, signer=signer)
            before, _, after = view.model_dump_json().encode().partition(_ETA)
            digest = hashlib.blake2b(before + after, digest_size=12).hexdigest()
            rendered = RenderedJob(f'W/"{digest}"', before, after)
            self._rendered[record.id] = source, rendered
            if len(self._rendered) > _RENDERED:
                self._rendered.popitem(last=False)
        self._rendered.move_to_end(record.id)
        return rendered

    async def eta_seconds(self, record: JobRecord) -> float | None:
        """Seconds until the job ends; `None` once it has, or while no pace is known."""
        if record.is_terminal:
            return None
        return await self._estimates.seconds_left(record.id, record.created_at, record.ahead)

    async def _signer(self, owner: str) -> Signer | None:
        return None if owner == ANONYMOUS else await self._signed_urls.signer(owner)


def _count(steps: object) -> int:
    """The steps of a request; 0 where this release cannot read them."""
    return steps if isinstance(steps, int) else 0


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
