# The API: no torch, no weights. Build from the repository's root: docker build -f docker/service.Dockerfile .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/m3esr
ENV PATH=/opt/m3esr/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
# Without our packages this installs what they need: a layer that a change of code does not build anew.
# Both secrets are optional: pip's settings for a mirror, and the certificates of a proxy.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    pip install ".[service]"
COPY jobs jobs
COPY service service
COPY m3esr m3esr
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    pip install --no-deps --force-reinstall .

FROM python:${PYTHON_VERSION}-slim
# The same number as in the worker's image: the two share a volume.
RUN groupadd --gid 10001 m3esr && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent m3esr \
    && install -d -o m3esr -g m3esr /var/lib/m3esr
COPY --from=build /opt/m3esr /opt/m3esr
ENV PATH=/opt/m3esr/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 M3ESR_STORAGE_URL=/var/lib/m3esr
USER m3esr
WORKDIR /var/lib/m3esr
EXPOSE 8000
# /livez and not /readyz: an API whose workers are still loading is well, and says so to its callers.
HEALTHCHECK --interval=10s --timeout=15s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ.get('M3ESR_PORT', '8000') + '/livez', timeout=14)"]
CMD ["m3esr", "serve"]
