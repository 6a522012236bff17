# The image: one static binary, the certificates of the public authorities, and nothing else.
#
#   docker build -t roadstead .                                  compiles it, in Alpine
#   docker build -t roadstead --build-arg BINARY=prebuilt .      takes target/image/roadstead, a static binary, and
#                                                                target/image/ca-certificates.crt
#   docker build --build-arg ROADSTEAD_COMMIT=$(git rev-parse --short HEAD) ...   says so in --version
ARG BINARY=build

FROM docker.io/library/rust:1-alpine AS build
RUN apk add --no-cache build-base ca-certificates
WORKDIR /source
COPY . .
# There is no git in here.
ARG ROADSTEAD_COMMIT=
RUN cargo build --release --locked --bin roadstead
RUN mkdir /image && cp target/release/roadstead /etc/ssl/certs/ca-certificates.crt /image/

FROM scratch AS prebuilt
COPY target/image/ /image/

FROM ${BINARY} AS binary

FROM scratch
COPY --from=binary /image/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=binary /image/roadstead /roadstead
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# Where sidecar.toml is looked for.
WORKDIR /etc/roadstead
USER 65532:65532
ENTRYPOINT ["/roadstead"]
