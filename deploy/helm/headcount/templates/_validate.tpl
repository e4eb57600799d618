{{/*
Combinations of values that are each allowed, and wrong together. The schema checks the values themselves.
A message says what to change. It never quotes a value that may be a secret.
*/}}
{{- define "headcount.validate" -}}
{{- $config := .Values.config }}
{{- $secrets := .Values.secrets }}
{{- $redis := include "headcount.redis" . }}
{{- $url := index $config "redis-url" | default "" }}

{{- /* Several instances. */}}
{{- if not $redis }}
{{- if .Values.autoscaling.enabled }}
{{- fail "autoscaling.enabled needs Redis: without it, each instance counts on its own. Set secrets.redis-url or config.redis-url" }}
{{- else if gt (int .Values.replicas) 1 }}
{{- fail (printf "replicas is %d, which needs Redis: without it, each instance counts on its own. Set secrets.redis-url or config.redis-url, or replicas: 1" (int .Values.replicas)) }}
{{- end }}
{{- if index $config "redis-stream" }}
{{- fail "config.redis-stream needs secrets.redis-url or config.redis-url" }}
{{- end }}
{{- end }}
{{- with .Values.autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas (%d) is more than autoscaling.maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- if not (or .targetCPUUtilizationPercentage .metrics) }}
{{- fail "autoscaling.enabled needs autoscaling.targetCPUUtilizationPercentage or autoscaling.metrics" }}
{{- end }}
{{- if and .targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $.Values.resources)) }}
{{- fail "autoscaling.targetCPUUtilizationPercentage is a share of resources.requests.cpu, which is not set" }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if .enabled }}
{{- $hasMax := not (kindIs "invalid" .maxUnavailable) }}
{{- $hasMin := not (kindIs "invalid" .minAvailable) }}
{{- if and $hasMax $hasMin }}
{{- fail "podDisruptionBudget: set maxUnavailable to null to use minAvailable" }}
{{- else if not (or $hasMax $hasMin) }}
{{- fail "podDisruptionBudget.enabled needs maxUnavailable or minAvailable" }}
{{- end }}
{{- if and $hasMax (has (toString .maxUnavailable) (list "0" "0%")) }}
{{- fail "podDisruptionBudget.maxUnavailable is 0: no node could ever be drained" }}
{{- end }}
{{- $fewest := ternary $.Values.autoscaling.minReplicas $.Values.replicas $.Values.autoscaling.enabled | int }}
{{- if $hasMin }}
{{- $isNumber := not (kindIs "string" .minAvailable) }}
{{- if or (eq (toString .minAvailable) "100%") (and $isNumber (ge (int .minAvailable) $fewest)) }}
{{- fail (printf "podDisruptionBudget.minAvailable is %v, and there may be only %d instances: no node could ever be drained" .minAvailable $fewest) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Secrets. */}}
{{- range $flag := list "api-token" "read-token" "id-key" "callback-secret" }}
{{- $value := index $config $flag | default "" }}
{{- if and $value (not (hasPrefix "file:/" $value)) }}
{{- fail (printf "config.%s is a secret in plain text: put it into a Secret, and name that in secrets.%s" $flag $flag) }}
{{- end }}
{{- end }}
{{- if or (regexMatch "^[a-z-]+://[^/?#@]*:[^/?#]*@" $url) (regexMatch "[?&]pass=" $url) (regexMatch "[?&]sentinel_password=($|[^f]|f[^i])" $url) }}
{{- fail "config.redis-url has a password in plain text: put the URL into a Secret, and name that in secrets.redis-url" }}
{{- end }}
{{- range $option, $value := index $config "kafka-option" }}
{{- $isSecret := or (regexMatch "password|passphrase|secret|key\\.pem" $option) (eq $option "sasl.oauthbearer.config") }}
{{- if and $isSecret (not (hasPrefix "file:/" (toString $value))) }}
{{- fail (printf "config.kafka-option: %s is a secret in plain text: put it into a Secret, and name that in secrets.kafka-option" $option) }}
{{- end }}
{{- end }}
{{- range $flag, $_ := omit $secrets "kafka-option" }}
{{- if index $config $flag }}
{{- fail (printf "both config.%s and secrets.%s are set: remove one" $flag $flag) }}
{{- end }}
{{- end }}
{{- range $option, $_ := index $secrets "kafka-option" }}
{{- if hasKey (index $config "kafka-option" | default dict) $option }}
{{- fail (printf "both config.kafka-option and secrets.kafka-option have %s: remove one" $option) }}
{{- end }}
{{- end }}
{{- $has := dict }}
{{- range $flag := list "api-token" "read-token" }}
{{- $_ := set $has $flag (or (index $config $flag) (index $secrets $flag)) }}
{{- end }}
{{- if and (get $has "read-token") (not (get $has "api-token")) }}
{{- fail "secrets.read-token needs secrets.api-token: without that, no request needs a token" }}
{{- end }}
{{- if and (index $config "allow-sketches") (not (get $has "api-token")) }}
{{- fail "config.allow-sketches needs secrets.api-token: a sketch may set any count" }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if hasPrefix "HEADCOUNT_" .name }}
{{- fail (printf "extraEnv: %s belongs in config, as %s" .name (.name | trimPrefix "HEADCOUNT_" | lower | replace "_" "-")) }}
{{- end }}
{{- end }}

{{- /* Redis and Kafka. */}}
{{- if and (regexMatch "^rediss?-sentinel:" $url) (not (regexMatch "[?&]master=[^&]" $url)) }}
{{- fail "config.redis-url lacks ?master=NAME, the name that the Sentinels know the primary by" }}
{{- end }}
{{- if regexMatch "^rediss?-cluster://[^/?]*/[1-9]" $url }}
{{- fail "config.redis-url names a database, and a Redis Cluster has none: leave out the path" }}
{{- end }}
{{- if not (index $config "kafka-brokers") }}
{{- range $flag := list "kafka-topic" "kafka-counters-topic" "kafka-option" }}
{{- if or (index $config $flag) (index $secrets $flag) }}
{{- fail (printf "%s needs config.kafka-brokers" $flag) }}
{{- end }}
{{- end }}
{{- end }}
{{- $namespace := index $config "namespace" | default "headcount" }}
{{- $topic := index $config "kafka-topic" | default (printf "%s.unique-counts" $namespace) }}
{{- if eq $topic (index $config "kafka-counters-topic" | default (printf "%s.counter-counts" $namespace)) }}
{{- fail (printf "config.kafka-topic and config.kafka-counters-topic are both %s: they must differ" $topic) }}
{{- end }}

{{- /* Durations. */}}
{{- $longest := dict "retention" "31d" "counter-retention" "31d" "keep-hours" "400d" "keep-days" "400d" "counter-keep-hours" "400d"
  "counter-keep-days" "400d" }}
{{- $ms := dict }}
{{- range $flag := list "window" "retention" "counter-retention" "keep-hours" "keep-days" "counter-keep-hours" "counter-keep-days"
  "redis-timeout" "redis-wait" "close-timeout" "lease-ttl" "idle-timeout" "header-read-timeout" "write-timeout"
  "body-read-timeout" "drain-delay" "shutdown-timeout" }}
{{- with index $config $flag }}
{{- $_ := set $ms $flag (include "headcount.ms" . | int64) }}
{{- $most := get $longest $flag | default "24h" }}
{{- if gt (get $ms $flag) (include "headcount.ms" $most | int64) }}
{{- fail (printf "config.%s is %s, and may be at most %s" $flag . $most) }}
{{- end }}
{{- end }}
{{- end }}
{{- $window := hasKey $ms "window" | ternary (get $ms "window") 60000 | int64 }}
{{- if or (mod $window 1000) (mod 86400000 $window) }}
{{- fail (printf "config.window is %s: it must be whole seconds that divide a day, such as 10s, 60s, 5min or 1h" (index $config "window")) }}
{{- end }}
{{- $exact := eq (index $config "mode" | default "hll") "exact" }}
{{- $retention := max (mul 2 $window) ($exact | ternary 900000 86400000) }}
{{- if hasKey $ms "retention" }}
{{- $retention = get $ms "retention" }}
{{- end }}
{{- if lt (int64 $retention) (mul 2 $window) }}
{{- fail (printf "config.retention is %s: it must be at least two windows" (index $config "retention")) }}
{{- end }}
{{- if and (hasKey $ms "counter-retention") (gt (get $ms "counter-retention") (int64 $retention)) }}
{{- fail (printf "config.counter-retention is %s, which is more than config.retention (by default 24h, in mode exact 15min)" (index $config "counter-retention")) }}
{{- end }}
{{- if and (hasKey $ms "lease-ttl") (lt (get $ms "lease-ttl") (int64 1000)) }}
{{- fail "config.lease-ttl must be at least 1s" }}
{{- end }}
{{- $drain := hasKey $ms "drain-delay" | ternary (get $ms "drain-delay") 0 | int64 }}
{{- $shutdown := hasKey $ms "shutdown-timeout" | ternary (get $ms "shutdown-timeout") 25000 | int64 }}
{{- if ge $drain $shutdown }}
{{- fail "config.drain-delay is a part of config.shutdown-timeout, and must be less: raise config.shutdown-timeout too" }}
{{- end }}

{{- /* Addresses. */}}
{{- if eq (include "headcount.port" (index $config "listen")) (include "headcount.port" (index $config "admin-listen")) }}
{{- fail "config.listen and config.admin-listen have the same port" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.enabled needs at least one of ingress.hosts" }}
{{- end }}
{{- if and (eq .Values.service.type "ClusterIP") .Values.service.externalTrafficPolicy }}
{{- fail "service.externalTrafficPolicy needs service.type NodePort or LoadBalancer" }}
{{- end }}
{{- if and (ne .Values.service.type "LoadBalancer") .Values.service.loadBalancerSourceRanges }}
{{- fail "service.loadBalancerSourceRanges needs service.type LoadBalancer" }}
{{- end }}
{{- with .Values.networkPolicy }}
{{- if and .enabled .egress.enabled }}
{{- if and $redis (not .egress.redis.to) }}
{{- fail "networkPolicy.egress.enabled needs networkPolicy.egress.redis.to: no instance could reach Redis" }}
{{- end }}
{{- if and (index $config "kafka-brokers") (not .egress.kafka.to) }}
{{- fail "networkPolicy.egress.enabled needs networkPolicy.egress.kafka.to: no instance could reach Kafka" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
