# The service, without torch:   docker build -f docker/service.Dockerfile -t dvib-service .
# With the wheels for a GPU:    … --build-arg GROUP=gpu   (CUDA 12 and cuDNN 9, which come as wheels too; about 3 GB more)
# The service itself computes on the processor either way, and says so in GET /models; the GPU is for
# dvib-export and dvib-bench in the same image.
FROM python:3.12.12-slim-bookworm AS build

ARG GROUP=cpu
WORKDIR /opt/dvib
COPY pyproject.toml README.md constraints.txt ./
COPY training training
COPY export export
COPY service service
COPY benchmarks benchmarks
# What is compiled here need not be compiled at each start, which a read-only image could not keep.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[service,${GROUP}]" \
    && /opt/venv/bin/pip uninstall --yes pip

FROM python:3.12.12-slim-bookworm

RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin dvib \
    && install --directory --owner dvib --group dvib /published
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DVIB_SERVE_HOST=0.0.0.0 \
    DVIB_SERVE_PORT=8000

USER 10001:10001
WORKDIR /published
EXPOSE 8000
STOPSIGNAL SIGTERM
# No model is loaded yet, or the service ends: unhealthy. Whoever asks needs no key for this.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"DVIB_SERVE_PORT\"]}/readyz', timeout=2)"]
ENTRYPOINT ["dvib-serve"]
