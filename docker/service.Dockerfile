# The service: no torch. Build: docker build -f docker/service.Dockerfile -t dvib-service .
# For a GPU: --build-arg GROUP=gpu (CUDA 12, cuDNN 9; the wheels bring the CUDA libraries).
FROM python:3.12-slim

ARG GROUP=cpu
WORKDIR /opt/dvib
COPY pyproject.toml README.md constraints.txt ./
COPY training training
COPY export export
COPY service service
COPY benchmarks benchmarks
RUN pip install --no-cache-dir -c constraints.txt ".[service,${GROUP}]" \
    && useradd --system --uid 10001 dvib

USER dvib
EXPOSE 8000
ENV DVIB_SERVE_HOST=0.0.0.0 DVIB_SERVE_PORT=8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["dvib-serve"]
