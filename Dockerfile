# Two stages: the first installs into a virtual environment, the second holds that and nothing else.
# The optimizer is included, so that a container can build its variants itself.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# On x86-64 the default torch brings CUDA; https://download.pytorch.org/whl/cpu has a CPU build.
ARG TORCH_INDEX_URL=
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Dependencies change rarely: they are installed before the code is copied.
COPY constraints.txt ./
RUN if [ -n "${TORCH_INDEX_URL}" ]; then set -- --index-url "${TORCH_INDEX_URL}"; fi \
    && pip install --no-deps "$@" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md ./
COPY artifacts artifacts
COPY demo demo
COPY optimizers optimizers
COPY protos protos
COPY server server
RUN pip install -c constraints.txt ".[optimizer,search]"

FROM ${BASE}
COPY --from=build /venv /venv
# A number, so that a cluster can see that it is not root.
RUN groupadd --gid 10001 server \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/inference-unlimited server \
    && install -d -o 10001 -g 10001 /var/lib/inference-unlimited
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/inference-unlimited/hub \
    INFERENCE_UNLIMITED_STORE=/var/lib/inference-unlimited/artifacts \
    INFERENCE_UNLIMITED_SERVER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/inference-unlimited
VOLUME /var/lib/inference-unlimited
EXPOSE 50051 8000 9464
# Healthy once the default variant serves; a first start builds it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=2)"]
ENTRYPOINT ["inference-unlimited"]
CMD ["serve"]
