#!/usr/bin/env bash
# Builds Lacuna's images from this checkout: deploy/images.sh TAG [server] [client] [proxy] [postgres]   (default: all)
#
#   LACUNA_TORCH    2.13.0 (with CUDA, from the index) or 2.13.0+cpu: of the client; the server's is always +cpu
#   LACUNA_PYTHON   base of server and client, a Debian with Python 3.11     default python:3.11-slim-bookworm
#                   (NAME@sha256:... is taken too, and is the same image on every day)
#   LACUNA_DEBIAN   base of proxy and postgres                               default debian:bookworm-slim
#   LACUNA_WHEELS   a folder of wheels that are at hand already, such as torch's
#   LACUNA_CA       a CA bundle, where the package index has a certificate of its own; it does not stay in the image
set -euo pipefail
cd "$(dirname "$0")/.."
tag=${1:?the tag, such as 0.1.0}; shift
images=("$@"); [ $# -gt 0 ] || images=(server client proxy postgres)
more=()
if [ -n "${LACUNA_WHEELS:-}" ]; then more+=(--build-context "wheels=$LACUNA_WHEELS"); fi
if [ -n "${LACUNA_CA:-}" ]; then
    conf=$(mktemp); trap 'rm -f "$conf"' EXIT
    printf '[global]\ncert = /run/secrets/ca_bundle\ntimeout = 180\n' >"$conf"
    more+=(--secret "id=pip_conf,src=$conf" --secret "id=ca_bundle,src=$LACUNA_CA")
fi
for image in "${images[@]}"; do
    case $image in
        server) args=(--build-arg "BASE=${LACUNA_PYTHON:-python:3.11-slim-bookworm}" --build-arg TORCH=2.13.0+cpu) ;;
        client) args=(--build-arg "BASE=${LACUNA_PYTHON:-python:3.11-slim-bookworm}" --build-arg "TORCH=${LACUNA_TORCH:-2.13.0}") ;;
        proxy | postgres) args=(--build-arg "BASE=${LACUNA_DEBIAN:-debian:bookworm-slim}") ;;
        *) echo "images.sh: $image: must be server, client, proxy or postgres" >&2; exit 2 ;;
    esac
    docker build --file "deploy/$image.Dockerfile" "${args[@]}" "${more[@]}" --tag "lacuna-$image:$tag" .
done
# What `lacuna federation sign-image` takes. What is in each stands in it: /usr/share/lacuna/sbom.cdx.json.
for image in "${images[@]}"; do
    printf '%s  %s\n' "$(docker image inspect --format '{{.Id}}' "lacuna-$image:$tag")" "lacuna-$image:$tag"
done
