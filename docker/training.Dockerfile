# Training and export:   docker build -f docker/training.Dockerfile -t dvib-training .
# torch comes from the package index with CUDA 13, which the base image asks the driver for (580 or newer) when a GPU is
# given to the container: docker run --gpus all … dvib-train fit --device cuda …. Without a GPU the same image trains on
# the processor. FAISS and ONNX Runtime are the ones for the processor: their wheels for a GPU bring cuDNN 9 for CUDA 12
# into the very files that torch's cuDNN 9 for CUDA 13 is in.
# torch.compile (--set training.compile=true) needs a compiler: --build-arg PACKAGES="g++ python3.12-dev"
FROM nvidia/cuda:13.0.0-base-ubuntu24.04

ARG PACKAGES=""
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dvib
COPY pyproject.toml README.md constraints.txt ./
COPY training training
COPY export export
COPY service service
COPY benchmarks benchmarks
RUN python3.12 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[training,export,service,cpu]" \
    && rm -rf build dvib.egg-info

# The folders belong to the user, and so do the volumes that begin as their copies.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin dvib \
    && install --directory --owner dvib --group dvib /work /work/runs /work/bundles /work/published
ENV PATH=/opt/venv/bin:$PATH \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    DVIB_CACHE=/work/runs/.cache

USER 10001:10001
WORKDIR /work
STOPSIGNAL SIGTERM
# A job: how it went is its exit code.
HEALTHCHECK NONE
CMD ["dvib-train", "--help"]
