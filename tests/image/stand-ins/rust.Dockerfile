# The toolchain of this machine, as the image rust has it.
ARG BASE
FROM $BASE
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY toolchain /usr/local/rust
COPY ca.crt /etc/ca-of-the-host.crt
ENV PATH=/usr/local/rust/bin:$PATH CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/etc/ca-of-the-host.crt
