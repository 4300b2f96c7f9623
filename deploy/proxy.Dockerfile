# nginx from Debian, as any uid, with a read-only root.
#   docker build -f deploy/proxy.Dockerfile -t lacuna-proxy .
ARG BASE=debian:bookworm-slim
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/* /etc/nginx/sites-enabled /var/www \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lacuna
COPY deploy/proxy.conf /etc/nginx/nginx.conf
RUN --mount=type=bind,source=deploy/sbom.sh,target=/tmp/sbom.sh \
    install -d /usr/share/lacuna && sh /tmp/sbom.sh lacuna-proxy >/usr/share/lacuna/sbom.cdx.json
USER 10001:10001
EXPOSE 8443
CMD ["nginx", "-g", "daemon off;"]
