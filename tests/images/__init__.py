"""The images, built and run: buildah on a Debian base, podman."""
