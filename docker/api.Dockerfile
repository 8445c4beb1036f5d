# syntax=docker/dockerfile:1.7
# The HTTP API and the command line: no torch, no compiler, no package manager cache.
#   docker build -f docker/api.Dockerfile -t imageprompt-api:0.1.0 .

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python", "-m", "venv", "--without-pip", "/opt/venv"]
# Pins alone first: a change of the code does not install anything anew.
COPY requirements/api.txt requirements/otel.txt /build/requirements/
RUN ["python", "-m", "pip", "--python", "/opt/venv/bin/python", "install", "--only-binary", ":all:", "--requirement", "/build/requirements/otel.txt"]

FROM python:3.11.14-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin imageprompt
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY models/*.yaml models/
COPY examples/*.png examples/
COPY service service
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
