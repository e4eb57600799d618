# syntax=docker/dockerfile:1
FROM rust:1-slim-bookworm AS build
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

FROM debian:bookworm-slim
# Certificates to trust: of callbacks' endpoints, of Redis and Kafka with TLS.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home headcount
COPY --from=build /src/target/dist/headcount /usr/local/bin/headcount
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# It asks where HEADCOUNT_LISTEN or HEADCOUNT_ADMIN_LISTEN say: set the address there, not by a flag.
HEALTHCHECK --interval=10s --timeout=4s --start-period=5s CMD ["headcount", "healthcheck"]
ENTRYPOINT ["headcount"]
