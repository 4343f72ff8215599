# Herd as an image: for NVIDIA GPUs, or, several GB smaller, for CPUs only. Weights are mounted; the demo model is in it.
#
#   docker build -t herd:cuda .
#   docker build -t herd:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#
# Needs nothing from the network when it runs, and writes to /tmp alone: the root may be read-only.

ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS build
ARG TORCH_INDEX=""
WORKDIR /src
RUN python3 -m venv /opt/herd
COPY constraints.txt ./
# torch by itself, and first: a change of the code does not fetch it again, and a CPU build stays one.
RUN set -- -c constraints.txt torch \
    && if [ -n "${TORCH_INDEX}" ]; then set -- --extra-index-url "${TORCH_INDEX}" "$@"; fi \
    && /opt/herd/bin/python -m pip install --no-cache-dir --disable-pip-version-check "$@"
COPY pyproject.toml README.md LICENSE ./
# What it needs, without the code itself: that changes more often.
RUN /opt/herd/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml','rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && /opt/herd/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
        -r requirements.txt hatchling
COPY cluster cluster
COPY context context
COPY experts experts
COPY models models
COPY protos protos
COPY router router
RUN /opt/herd/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
# A C compiler, because kernels for CPUs and Triton's launchers are made where they run; wget for KubeRay's probes; the PATH
# for login shells, which an operator may be told to start Ray with (ENABLE_LOGIN_SHELL) and which know no ENV.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray \
    && echo "PATH=/opt/herd/bin:\$PATH" > /etc/profile.d/herd.sh
LABEL org.opencontainers.image.title="Herd" \
      org.opencontainers.image.description="Serves Llama-4-style mixture-of-experts models on a Ray cluster" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/herd /opt/herd
ENV PATH=/opt/herd/bin:$PATH \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /home/ray
USER 1000
EXPOSE 8000 9000
CMD ["herd", "serve"]
