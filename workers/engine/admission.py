"""From a job whose inputs are at hand to rows that can take steps.

Runs on the engine's thread between two steps. All that the steps of a job share is done here.
"""

from workers.engine import schedulers
from workers.engine.conditions import Conditioner
from workers.engine.determinism import by_rule
from workers.engine.encoding import Encoders
from workers.engine.finishing import Finisher
from workers.engine.rows import Row, Work, start_row


class Admission:
    """Encodes jobs and makes their rows."""

    def __init__(self, encoders: Encoders, finisher: Finisher) -> None:
        self._encoders = encoders
        self._finisher = finisher
        self._conditioner = Conditioner()

    def rows_of(self, work: Work) -> list[Row]:
        """The rows of a job, one a picture.

        By rule for every job: what is cached here may serve a deterministic one. Raises
        `UnservableRequest` where its sampler cannot do so many steps.
        """
        with by_rule():
            return self._rows_of(work)

    def _rows_of(self, work: Work) -> list[Row]:
        assert work.inputs is not None, "jobs are admitted with their inputs"
        request, model = work.job.request, work.model
        config = model.pipe.scheduler.config
        samplers = [
            schedulers.make(request.scheduler, config, request.steps)
            for _ in range(request.num_images)
        ]
        work.steps = [0] * request.num_images
        encoded = self._encoders.encode(model, model.adapters[request.adapter], work.inputs)
        self._finisher.share(encoded.fresh)
        conditions = self._conditioner.make(
            request, model, work.inputs, encoded, samplers[0].timesteps
        )
        return [
            start_row(work, index, conditions, sampler) for index, sampler in enumerate(samplers)
        ]
