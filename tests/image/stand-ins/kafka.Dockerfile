# Kafka's own jars, with the user, the directories and the scripts of the image apache/kafka.
FROM stand-in-base
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless && rm -rf /var/lib/apt/lists/* \
 && useradd --no-log-init --uid 1000 --create-home appuser \
 && mkdir -p /var/lib/kafka/data /etc/kafka/docker /mnt/shared/config /opt/kafka/config /opt/kafka/bin \
 && touch /etc/kafka/docker/server.properties && chown -R appuser /var/lib/kafka /opt/kafka/config
COPY libs /opt/kafka/libs
COPY kafka-run /etc/kafka/docker/run
COPY kafka-log4j2.yaml /etc/kafka/docker/log4j2.yaml
COPY kafka-log4j2.yaml /etc/kafka/docker/tools-log4j2.yaml
COPY kafka-tool /opt/kafka/bin/kafka-console-consumer.sh
COPY kafka-tool /opt/kafka/bin/kafka-topics.sh
USER appuser
VOLUME /var/lib/kafka/data
CMD ["/etc/kafka/docker/run"]
