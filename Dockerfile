# One image for every role: worker, FUSE mount, CSI node plugin and controller, command line.
#
#   docker build -t alluxio/alluxio:0.1.0 .
#
# It runs as user 1000. The roles that mount need more, and say so: `fuse` and `csi-node` run as root, with /dev/fuse,
# in Kubernetes privileged, because the kubelet refuses Bidirectional mount propagation to anything less.
#
# The binaries come from the stage `build`, or from another image that has them in its root directory:
#   docker build --build-arg BINARIES=registry.example/alluxio-binaries:1 .

ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
ARG BINARIES=build

FROM ${BUILD_IMAGE} AS compile
RUN apt-get update \
 && apt-get install -y --no-install-recommends clang mold protobuf-compiler \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Every program of the workspace that is for users; what tests and benchmarks need is not built.
RUN cargo build --release --locked --bins --workspace --exclude bench --exclude tests --exclude s3server \
 && mkdir /out \
 && for name in alluxio alluxio-fuse alluxio-csi; do \
      if [ -f "target/release/$name" ]; then strip -o "/out/$name" "target/release/$name" || exit 1; fi; \
    done

FROM scratch AS build
COPY --from=compile /out/ /

FROM ${BINARIES} AS binaries

FROM ${BASE_IMAGE} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="alluxio" \
      org.opencontainers.image.description="Worker, FUSE mount, CSI driver and command line" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# ca-certificates for object stores; tini as process 1. No fusermount3: mounts are made by root with mount(2), and so the
# image has no setuid program of its own.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 1000 alluxio \
 && useradd --uid 1000 --gid 1000 --home-dir /opt/alluxio --no-create-home --shell /usr/sbin/nologin alluxio \
 && mkdir -p /opt/alluxio/bin /opt/alluxio/conf /opt/alluxio/logs /opt/alluxio/integration/fuse/bin /opt/domain /mnt/alluxio-fuse /var/lib/alluxio \
 && chown alluxio:alluxio /opt/alluxio/conf /opt/alluxio/logs /opt/domain /var/lib/alluxio
COPY --from=binaries / /usr/local/bin/
COPY deploy/image/entrypoint.sh /entrypoint.sh
# Where scripts and manifests for Alluxio look for the programs.
RUN for name in alluxio alluxio-fuse alluxio-csi; do \
      if [ -e "/usr/local/bin/$name" ]; then ln -s "/usr/local/bin/$name" "/opt/alluxio/bin/$name" || exit 1; fi; \
    done \
 && ln -s /usr/local/bin/alluxio-fuse /opt/alluxio/integration/fuse/bin/alluxio-fuse \
 && alluxio --version && alluxio-fuse --version
ENV ALLUXIO_HOME=/opt/alluxio
USER 1000:1000
WORKDIR /opt/alluxio
# Worker: metadata, data, /metrics and /health; mount: /metrics and /health.
EXPOSE 29999 29997 30000 49999
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tini", "--", "/entrypoint.sh"]
CMD ["help"]
