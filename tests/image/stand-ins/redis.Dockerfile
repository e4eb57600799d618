# Debian's Redis 7.0, with the user, the directory and the entry point of the image redis.
FROM stand-in-base
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/* \
 && groupmod --gid 1000 redis && usermod --uid 999 --gid 1000 redis && mkdir -p /data && chown redis:redis /data
WORKDIR /data
VOLUME /data
COPY redis-entry /usr/local/bin/docker-entrypoint.sh
ENTRYPOINT ["docker-entrypoint.sh"]
