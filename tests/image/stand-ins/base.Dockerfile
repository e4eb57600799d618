# What the health checks of docker-compose.yml need, and Debian has not.
ARG BASE
FROM $BASE
RUN apt-get update && apt-get install -y --no-install-recommends busybox ca-certificates curl && rm -rf /var/lib/apt/lists/* \
 && ln -s /bin/busybox /usr/local/bin/wget
