# Two images:
#
#   full    builds variants and serves them; the default
#   serve   serves what is in its store; without torch, a fraction of the size
#
# ARG BASE              Debian with a Python of 3.11 or newer
# ARG TORCH_INDEX_URL   where torch comes from; on x86-64 the default brings CUDA (several GB),
#                       https://download.pytorch.org/whl/cpu does not
# ARG REVISION          the commit, for the label
# deploy/wheels/        wheels that lie there are offered to pip beside the index
ARG BASE=python:3.11-slim

FROM ${BASE} AS install
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_FIND_LINKS=/wheels \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY deploy/wheels /wheels
COPY constraints.txt ./

FROM install AS code
COPY pyproject.toml README.md LICENSE ./
COPY artifacts artifacts
COPY demo demo
COPY optimizers optimizers
COPY protos protos
COPY server server

FROM code AS install-serve
# sympy is asked for by onnxruntime's scripts alone, and nobody installs anything more.
RUN pip install ".[planning,remote]" \
    && pip uninstall --yes sympy mpmath setuptools \
    && pip uninstall --yes pip

FROM install AS torch
# Changes rarely and is the largest part: installed before the code is copied.
ARG TORCH_INDEX_URL=
RUN if [ -n "${TORCH_INDEX_URL}" ]; then set -- --index-url "${TORCH_INDEX_URL}"; fi \
    && pip install --no-deps "$@" "$(grep '^torch==' constraints.txt)"

FROM torch AS install-full
COPY --from=code /src /src
RUN pip install ".[optimizer,planning,remote,search,tracing]"

FROM ${BASE} AS runtime
ARG REVISION=
LABEL org.opencontainers.image.title="inference-unlimited" \
      org.opencontainers.image.description="Serve optimized variants of one language model side by side" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# A number, so that a cluster can see that it is not root.
RUN groupadd --gid 10001 server \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/inference-unlimited server \
    && install -d -o 10001 -g 10001 /var/lib/inference-unlimited
# All that is written lies in the store; the rest of the file system may be read-only.
ENV PATH=/venv/bin:$PATH \
    HF_HOME=/var/lib/inference-unlimited/hub \
    INFERENCE_UNLIMITED_SERVER__HOST=0.0.0.0 \
    INFERENCE_UNLIMITED_STORE=/var/lib/inference-unlimited/artifacts \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/inference-unlimited
VOLUME /var/lib/inference-unlimited
EXPOSE 50051 8000 9464
# By grpc.health.v1: healthy once a variant that takes traffic serves; a first start builds it.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 \
    CMD ["inference-unlimited", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["inference-unlimited"]
CMD ["serve"]

FROM runtime AS serve
COPY --from=install-serve /venv /venv

FROM runtime AS full
COPY --from=install-full /venv /venv
