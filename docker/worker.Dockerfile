# The worker: torch, the networks, the weights of `compact`. From the root: docker build -f docker/worker.Dockerfile .
# With --build-arg EXTRAS=diffusion also what `quality` and `fidelity` need; their weights lie in a volume.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/m3esr
ENV PATH=/opt/m3esr/bin:$PATH
# First and by itself: it is by far the largest layer, and the packages after it must not choose another build.
# Pip's usual index may hold a large CUDA build; TORCH_INDEX can name PyTorch's index of CPU wheels instead. What torch
# needs comes with the next step.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
# Both secrets are optional: pip's settings for a mirror, and the certificates of a proxy.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    pip install --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$TORCH"
# More of pyproject.toml's extras, comma-separated: diffusion, quantised.
ARG EXTRAS=
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
# Without our packages this installs what they need: a layer that a change of code does not build anew.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    pip install ".[worker${EXTRAS:+,$EXTRAS}]"
COPY jobs jobs
COPY models models
COPY worker worker
COPY m3esr m3esr
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    pip install --no-deps --force-reinstall .

FROM python:${PYTHON_VERSION}-slim
# The same number as in the service's image: the two share a volume.
RUN groupadd --gid 10001 m3esr && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent m3esr \
    && install -d -o m3esr -g m3esr /var/lib/m3esr /var/lib/m3esr-models
COPY --from=build /opt/m3esr /opt/m3esr
ENV PATH=/opt/m3esr/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 M3ESR_STORAGE_URL=/var/lib/m3esr
ENV M3ESR_MODELS_DIR=/var/lib/m3esr-models
USER m3esr
WORKDIR /var/lib/m3esr
EXPOSE 8001
# Healthy once the networks are warm and the heartbeat is fresh; loading counts as starting for two minutes. The
# time is ample because a job takes every core, and the check shares them.
HEALTHCHECK --interval=10s --timeout=20s --start-period=120s --retries=3 CMD ["python", "-m", "worker.health"]
CMD ["m3esr", "work"]
