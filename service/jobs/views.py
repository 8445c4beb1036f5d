"""The JSON of the contract: how a job and a page of jobs look to a client.

It shapes what others have read; it reads nothing itself.
"""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, Field

from service.core.job import Job, JobError, JobMetrics, Status
from service.core.params import Crop, OutputFormat, SchedulerName, Sha256


class Progress(BaseModel):
    """Denoising steps done, of all."""

    step: int = Field(examples=[12])
    total: int = Field(examples=[30])


class InputImage(BaseModel):
    """One upload. Width and height in pixels, upright."""

    sha256: Sha256 = Field(description="Of the file as uploaded.")
    width: int
    height: int


class InputControl(BaseModel):
    """The uploaded ControlNet map."""

    sha256: Sha256 = Field(description="Of the file as uploaded.")


class Input(BaseModel):
    """Every parameter of the job, resolved, by the names of the form."""

    image: list[InputImage]
    image_weights: list[float]
    prompt: str
    negative_prompt: str
    control_image: InputControl | None
    control_type: str | None
    control_scale: float | None
    control_start: float | None
    control_end: float | None
    ip_scale: float
    crop: Crop
    model: str
    adapter: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    guidance_end: float
    scheduler: SchedulerName
    seed: int
    num_images: int
    output_format: OutputFormat
    deterministic: bool
    webhook_url: str | None


class OutputImage(BaseModel):
    """One finished picture. Width and height in pixels."""

    url: str
    content_type: str
    width: int
    height: int
    seed: int
    sha256: Sha256


class Urls(BaseModel):
    """Where to go on."""

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
    input: Input
    images: list[OutputImage]
    error: JobError | None
    metrics: JobMetrics
    urls: Urls


class JobPage(BaseModel):
    """Some of the caller's jobs, newest first."""

    jobs: list[JobView]
    next: Annotated[str | None, Field(description="URL of the next page; null on the last one.")]


def job_view(job: Job, *, base: str, ahead: int | None, eta_seconds: float | None) -> JobView:
    """A job as its client sees it; `base` is the service's own URL with a slash at its end."""
    url = f"{base}jobs/{job.id}"
    return JobView(
        id=job.id,
        status=job.status,
        created_at=_moment(job.created_at),
        started_at=None if job.started_at is None else _moment(job.started_at),
        completed_at=None if job.completed_at is None else _moment(job.completed_at),
        expires_at=None if job.expires_at is None else _moment(job.expires_at),
        queue_position=ahead,
        eta_seconds=eta_seconds,
        progress=Progress(step=job.step, total=job.request.steps),
        input=_input(job),
        images=[
            OutputImage(
                url=f"{url}/images/{number}",
                content_type=image.content_type,
                width=image.width,
                height=image.height,
                seed=image.seed,
                sha256=image.sha256,
            )
            for number, image in enumerate(job.images)
        ],
        error=job.error,
        metrics=job.metrics,
        urls=Urls(self=url, cancel=f"{url}/cancel", events=f"{url}/events"),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _input(job: Job) -> Input:
    request, control = job.request, job.request.control
    return Input(
        image=[
            InputImage(sha256=image.sha256, width=image.width, height=image.height)
            for image in request.images
        ],
        image_weights=[image.weight for image in request.images],
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        control_image=None if control is None else InputControl(sha256=control.sha256),
        control_type=control and control.type,
        control_scale=control and control.scale,
        control_start=control and control.start,
        control_end=control and control.end,
        ip_scale=request.ip_scale,
        crop=request.crop,
        model=request.model,
        adapter=request.adapter,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_end=request.guidance_end,
        scheduler=request.scheduler,
        seed=request.seed,
        num_images=request.num_images,
        output_format=request.output_format,
        deterministic=request.deterministic,
        webhook_url=request.webhook_url,
    )
