# The client's image, which a hospital builds or chooses itself. Built from the root of the repository:
#
#   docker build -f deploy/client.Dockerfile -t lacuna-client .                                  for NVIDIA GPUs
#   docker build -f deploy/client.Dockerfile -t lacuna-client --build-arg TORCH=2.13.0+cpu .     for a CPU alone
#
#   BASE    a Debian with Python 3.11, or an image of the hospital's own that has it
#   TORCH   the index's own 2.13.0 brings CUDA with it, so that the host needs a driver and NVIDIA's container toolkit only
#   --build-context wheels=FOLDER    wheels that are at hand already, such as torch's
#   --secret id=pip_conf, id=ca_bundle    where the index has a certificate of its own; nothing of them stays in the image
ARG BASE=python:3.11-slim-bookworm
ARG TORCH=2.13.0

FROM scratch AS wheels

# --- the same lines in both images, so that one build serves the other: what they need, before what they are ---------
FROM ${BASE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONSAFEPATH=1

# Only the list of packages, so that no other line of pyproject.toml makes the next stage anew.
FROM base AS wanted
WORKDIR /wanted
COPY pyproject.toml .
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], sep='\n')" >requirements.txt

FROM base AS dependencies
ARG TORCH
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
RUN --mount=type=bind,from=wheels,target=/opt/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    pip install --find-links /opt/wheels "torch==${TORCH}"
COPY --from=wanted /wanted/requirements.txt /opt/requirements.txt
COPY constraints.txt /opt/constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    pip install --constraint /opt/constraints.txt --requirement /opt/requirements.txt

FROM base AS wheel
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    python3 -m venv /opt/build && /opt/build/bin/pip install hatchling==1.33.0
WORKDIR /src
COPY . .
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --no-cache-dir --wheel-dir /wheel .
# --- end of what is the same -----------------------------------------------------------------------------------------

FROM dependencies AS client
RUN useradd --uid 10001 --no-create-home --home-dir /state --shell /usr/sbin/nologin lacuna \
    && install -d -m 0700 -o 10001 -g 10001 /state \
    && install -d -m 0755 /cohort
ENV FLWR_HOME=/state/flwr \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    MALLOC_ARENA_MAX=2 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
RUN --mount=type=bind,source=deploy/sbom.sh,target=/tmp/sbom.sh \
    install -d /usr/share/lacuna && sh /tmp/sbom.sh lacuna-client >/usr/share/lacuna/sbom.cdx.json
USER 10001:10001
WORKDIR /state
VOLUME /state
HEALTHCHECK --interval=30s --timeout=25s --retries=3 --start-period=90s \
    CMD ["lacuna-site", "status", "--state", "/state", "--quiet"]
ENTRYPOINT ["lacuna-site"]
CMD ["--help"]
