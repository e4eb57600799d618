FROM rust:1.95.0-slim-bookworm AS build
# What librdkafka and its OpenSSL are built with.
RUN apt-get update && apt-get install -y --no-install-recommends g++ make perl && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# The dependencies first, from the manifests alone: this layer is rebuilt only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs \
 && cargo build --profile dist --locked --features kafka-tls --bin headcount \
 && rm -r src

COPY src ./src
# Sources are copied with the times of the checkout, which may be older than the stand-ins.
RUN touch src/lib.rs src/main.rs && cargo build --profile dist --locked --features kafka-tls --bin headcount

FROM debian:12.15-slim
# Certificates to trust: of callbacks' endpoints, of Redis and Kafka with TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/dist/headcount /usr/local/bin/headcount
# Needs no entry in /etc/passwd.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# It asks where the flags of process 1 or the environment say.
HEALTHCHECK --interval=10s --timeout=4s --start-period=5s CMD ["headcount", "healthcheck"]
ENTRYPOINT ["headcount"]
# The commit: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headcount" \
      org.opencontainers.image.description="Counts how many different ids arrive each minute" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"
