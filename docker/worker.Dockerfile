# syntax=docker/dockerfile:1.7
# Workers. Three targets; models are never in the first two:
#   cuda          torch 2.10 + xformers on CUDA 12.8; the default
#   cuda-compile  the same and a C compiler, which torch.compile needs when it meets a new shape
#   cpu           torch for CPUs and the bundled model, for trials
#   docker build -f docker/worker.Dockerfile --target cuda -t imageprompt-worker:0.1.0-cuda .

FROM python:3.11.14-slim-bookworm AS cpu-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python", "-m", "venv", "--without-pip", "/opt/venv"]
COPY requirements/api.txt requirements/otel.txt requirements/worker.txt /build/requirements/
# Name PyTorch's index of CPU wheels here, or the CUDA libraries come along (about 5 GB).
ARG PIP_EXTRA_INDEX_URL=
RUN ["python", "-m", "pip", "--python", "/opt/venv/bin/python", "install", "--only-binary", ":all:", "--requirement", "/build/requirements/worker.txt", "--requirement", "/build/requirements/otel.txt"]

FROM python:3.11.14-slim-bookworm AS cpu
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin imageprompt
COPY --from=cpu-build /opt/venv /opt/venv
WORKDIR /app
COPY models models
COPY service service
COPY workers workers
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

# torch's wheel brings its CUDA 12.8 libraries; the base adds NVIDIA's runtime, which xformers links
# against, and the libraries that let an older driver of a data-centre GPU run it.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS cuda-base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3=3.12.* \
    && rm -rf /var/lib/apt/lists/*

FROM cuda-base AS cuda-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip=24.* python3-venv=3.12.* \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --without-pip /opt/venv
COPY requirements/api.txt requirements/otel.txt requirements/worker-cuda.txt /build/requirements/
RUN ["python3", "-m", "pip", "--python", "/opt/venv/bin/python", "install", "--only-binary", ":all:", "--requirement", "/build/requirements/worker-cuda.txt", "--requirement", "/build/requirements/otel.txt"]

FROM cuda-base AS cuda-worker
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin imageprompt
COPY --from=cuda-build /opt/venv /opt/venv
WORKDIR /app
COPY models/*.yaml models/
COPY service service
COPY workers workers
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
