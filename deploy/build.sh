#!/usr/bin/env bash
# Builds the images with podman, buildah or docker: make image. All of it may be set in the environment:
#   IMAGES        dbserve dbserve-worker
#   BUILDER       the first of podman, buildah, docker that is there
#   REGISTRY      before their names: registry.example.com/team/
#   TAG           the version in pyproject.toml
#   BASE, PYTHON, APT_PACKAGES, TORCH_INDEX, PIP_NO_INDEX: see the Containerfiles
#   WHEELS        a directory of wheels to install from
#   PIP_CONF      a pip.conf that names an index of your own; it is in no layer
set -euo pipefail
cd "$(dirname "$0")/.."

for candidate in ${BUILDER:-podman buildah docker}; do
    command -v "$candidate" >/dev/null && builder=$candidate && break
done
if [[ -z ${builder:-} ]]; then
    echo "make image needs ${BUILDER:-podman, buildah or docker}: none was found" >&2
    exit 1
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
options=(--build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
for name in BASE PYTHON APT_PACKAGES TORCH_INDEX PIP_NO_INDEX; do
    [[ -n ${!name:-} ]] && options+=(--build-arg "$name=${!name}")
done
[[ -n ${WHEELS:-} ]] && options+=(--build-context "wheels=$WHEELS")
[[ -n ${PIP_CONF:-} ]] && options+=(--secret "id=pip,src=$PIP_CONF")

own=()
for image in ${IMAGES:-dbserve dbserve-worker}; do
    file=deploy/Containerfile${image#dbserve}
    file=${file/-/.}
    # Docker finds the file of what to leave out by its name; the format of OCI knows no HEALTHCHECK.
    [[ $builder == docker ]] || own=(--ignorefile "$file.dockerignore" --format docker --layers)
    "$builder" build "${options[@]}" "${own[@]}" --file "$file" --tag "${REGISTRY:-}$image:${TAG:-$version}" .
done
