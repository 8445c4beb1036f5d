# The HTTP API and the command line: no torch, no compiler, no package manager cache.
#   docker build -f docker/api.Dockerfile -t imageprompt-api:0.1.0 .
# For a build that can be repeated, name the base by its digest:
#   --build-arg BASE=python:3.11.14-slim-bookworm@sha256:…
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python", "-m", "venv", "--without-pip", "/opt/venv"]
# Pins alone first: a change of the code does not install anything again. pip compiles to bytecode.
COPY requirements/hashed/api.txt /build/requirements/hashed/api.txt
RUN ["python", "-m", "pip", "--python", "/opt/venv/bin/python", "install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", "/build/requirements/hashed/api.txt"]

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="imageprompt API" \
    org.opencontainers.image.description="HTTP API and command line of imageprompt" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin imageprompt
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY models/*.yaml models/
COPY examples/*.png examples/
COPY imageprompt imageprompt
COPY service service
RUN ["/opt/venv/bin/python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "imageprompt", "service"]
# HOME lies in the one folder that has to be writable; everything else may be mounted read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    IMAGEPROMPT_HOST=0.0.0.0 \
    IMAGEPROMPT_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['IMAGEPROMPT_PORT'] + '/healthz/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "service"]
