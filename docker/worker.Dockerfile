# Workers. Three targets; models are only in the last one:
#   cuda          on an NVIDIA GPU; the default
#   cuda-compile  the same and a C compiler, which torch.compile needs when it meets a new shape
#   cpu           torch for CPUs and the bundled model, for trials
# and two stacks for the first two:
#   STACK=cuda    torch 2.10 + xformers on CUDA 12.8: Turing to Hopper; the default
#   STACK=cuda13  torch 2.13 with its own attention (SDPA, cuDNN) on CUDA 13: Turing to Blackwell
#   docker build -f docker/worker.Dockerfile --target cuda -t imageprompt-worker:0.1.0-cuda .
#   docker build -f docker/worker.Dockerfile --target cuda --build-arg STACK=cuda13 -t imageprompt-worker:0.1.0-cuda13 .
# For a build that can be repeated, name the bases by their digests (NAME:TAG@sha256:…).
ARG BASE=python:3.11.14-slim-bookworm
ARG CUDA_BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
ARG CUDA13_BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG STACK=cuda

FROM ${BASE} AS cpu-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python", "-m", "venv", "--without-pip", "/opt/venv"]
COPY requirements/hashed/worker.txt /build/requirements/hashed/worker.txt
RUN ["python", "-m", "pip", "--python", "/opt/venv/bin/python", "install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", "/build/requirements/hashed/worker.txt"]
# Name PyTorch's index of CPU wheels here, or the CUDA libraries come along (about 5 GB). The wheel of
# the one index has another hash than that of the other, so torch alone is installed by its version.
# What runs nothing is deleted, 195 MB: torch's tests, C++ headers and tools.
ARG PIP_EXTRA_INDEX_URL=
RUN python -m pip --python /opt/venv/bin/python install --only-binary :all: torch==2.13.0 \
    && find /opt/venv/lib -path "*/site-packages/torch/*" -maxdepth 5 -type d \
        \( -name test -o -name include -o -name share \) -exec rm -rf {} + \
    && find /opt/venv/lib -path "*/site-packages/torch/bin/*" ! -name torch_shm_manager -delete

FROM ${BASE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="imageprompt CPU worker" \
    org.opencontainers.image.description="Worker of imageprompt for trials, with the bundled model" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin imageprompt
COPY --from=cpu-build /opt/venv /opt/venv
WORKDIR /app
COPY models models
COPY service service
COPY workers workers
RUN ["/opt/venv/bin/python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "service", "workers"]
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    IMAGEPROMPT_HOST=0.0.0.0 \
    IMAGEPROMPT_DEVICE=cpu \
    IMAGEPROMPT_WORKER_METRICS_PORT=9100
USER 10001:10001
EXPOSE 9100
# A worker is healthy while its steps advance; whether it is warm is asked under /healthz/ready.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['IMAGEPROMPT_WORKER_METRICS_PORT'] + '/healthz/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "workers"]

# torch's wheel brings its CUDA libraries; the base adds NVIDIA's runtime, which xformers links
# against, and the libraries that let an older driver of a data-centre GPU run it.
FROM ${CUDA_BASE} AS cuda-base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3=3.12.* \
    && rm -rf /var/lib/apt/lists/*

FROM ${CUDA13_BASE} AS cuda13-base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3=3.12.* \
    && rm -rf /var/lib/apt/lists/*

FROM ${STACK}-base AS cuda-build
ARG STACK
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip=24.* python3-venv=3.12.* \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --without-pip /opt/venv
COPY requirements/hashed/worker-cuda.txt requirements/hashed/worker-cuda13.txt /build/requirements/hashed/
RUN python3 -m pip --python /opt/venv/bin/python install --no-deps --only-binary :all: --require-hashes --requirement "/build/requirements/hashed/worker-${STACK}.txt"

FROM ${STACK}-base AS cuda-worker
ARG STACK
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="imageprompt worker (${STACK})" \
    org.opencontainers.image.description="GPU worker of imageprompt; models come from a volume" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin imageprompt
COPY --from=cuda-build /opt/venv /opt/venv
WORKDIR /app
COPY models/*.yaml models/
COPY service service
COPY workers workers
RUN ["/opt/venv/bin/python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "service", "workers"]
# Model files, compiled kernels and temporary files live in volumes; the rest may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/models \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    IMAGEPROMPT_HOST=0.0.0.0 \
    IMAGEPROMPT_DEVICE=cuda \
    IMAGEPROMPT_MODELS=/app/models/sdxl.yaml \
    IMAGEPROMPT_WORKER_METRICS_PORT=9100
RUN mkdir /models /cache && chown 10001:10001 /models /cache
VOLUME ["/models", "/cache"]
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=900s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['IMAGEPROMPT_WORKER_METRICS_PORT'] + '/healthz/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "workers"]

FROM cuda-worker AS cuda-compile
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:13.* libc6-dev=2.39-* libpython3.12-dev=3.12.* \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001

# Last, so that it is what a build without --target makes.
FROM cuda-worker AS cuda
ENV IMAGEPROMPT_COMPILE=false
USER 10001:10001
