# Training and export. Build: docker build -f docker/training.Dockerfile -t dvib-training .
# torch's default wheels carry CUDA; run with --gpus all and --device cuda.
FROM python:3.12-slim

WORKDIR /opt/dvib
COPY pyproject.toml README.md constraints.txt ./
COPY training training
COPY export export
COPY service service
COPY benchmarks benchmarks
RUN pip install --no-cache-dir -c constraints.txt ".[training,export,service,cpu]" \
    && useradd --system --create-home --uid 10001 dvib \
    && mkdir -p /work/runs /work/bundles && chown -R dvib /work

USER dvib
WORKDIR /work
CMD ["dvib-train", "--help"]
