# PostgreSQL 15 from Debian for MLflow, never as root, with a read-only root.
#   docker build -f deploy/postgres.Dockerfile -t lacuna-postgres .
ARG BASE=debian:bookworm-slim
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-common \
    && sed -i 's/^#create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
    && apt-get install -y --no-install-recommends postgresql-15 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /srv/postgres --shell /usr/sbin/nologin lacuna \
    && install -d -m 0700 -o 10001 -g 10001 /srv/postgres
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
COPY --chmod=0755 deploy/postgres.sh /usr/local/bin/lacuna-postgres
RUN --mount=type=bind,source=deploy/sbom.sh,target=/tmp/sbom.sh \
    install -d /usr/share/lacuna && sh /tmp/sbom.sh lacuna-postgres >/usr/share/lacuna/sbom.cdx.json
USER 10001:10001
VOLUME /srv/postgres
ENTRYPOINT ["lacuna-postgres"]
