{{- define "headcount.name" -}}
{{- .Values.nameOverride | default .Chart.Name }}
{{- end }}

{{/* The name of everything that the chart makes. It leaves room for "-dashboards" within 63 characters. */}}
{{- define "headcount.fullname" -}}
{{- $name := include "headcount.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "headcount.selector" -}}
app.kubernetes.io/name: {{ include "headcount.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "headcount.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "headcount.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "headcount.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "headcount.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "headcount.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The job of Prometheus. */}}
{{- define "headcount.job" -}}
{{- .Values.serviceMonitor.job | default (printf "headcount-%s-%s" .Release.Namespace (include "headcount.fullname" .)) }}
{{- end }}

{{/* "yes" if instances count together in Redis. */}}
{{- define "headcount.redis" -}}
{{- if or (index .Values.config "redis-url") (index .Values.secrets "redis-url") }}yes{{ end }}
{{- end }}

{{/* The port of an address such as 0.0.0.0:8080. */}}
{{- define "headcount.port" -}}
{{- regexFind "[0-9]+$" . }}
{{- end }}

{{/* A duration such as "1min 30s" in milliseconds. The schema allows no other units. */}}
{{- define "headcount.ms" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "min" 60000 "h" 3600000 "d" 86400000 "day" 86400000 "days" 86400000
  "w" 604800000 "week" 604800000 "weeks" 604800000 }}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+[a-z]+" . -1 }}
{{- $sum = add $sum (mul (regexFind "^[0-9]+" . | int64) (get $units (regexFind "[a-z]+$" .))) }}
{{- end }}
{{- $sum }}
{{- end }}

{{/*
Seconds until a pod is killed: all of --shutdown-timeout, rounded up, and five more for the container to end.
--drain-delay is a part of --shutdown-timeout. A pod that is killed leaves windows that say complete=false.
*/}}
{{- define "headcount.graceSeconds" -}}
{{- $timeout := include "headcount.ms" (index .Values.config "shutdown-timeout" | default "25s") | int64 }}
{{- add 5 (div (add $timeout 999) 1000) }}
{{- end }}

{{/* A value of a flag as the service reads it. YAML makes true of `on`, and a floating point number of each number. */}}
{{- define "headcount.value" -}}
{{- if kindIs "bool" . }}{{ ternary "on" "off" . }}
{{- else if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "string" . }}{{ . }}
{{- else }}{{ int64 . }}
{{- end }}
{{- end }}

{{- define "headcount.variable" -}}
HEADCOUNT_{{ . | upper | replace "-" "_" }}
{{- end }}

{{/* The options of librdkafka as one value. Those from Secrets are in files. */}}
{{- define "headcount.kafkaOption" -}}
{{- $options := list }}
{{- range $option, $value := index .Values.config "kafka-option" }}
{{- $text := kindIs "bool" $value | ternary (toString $value) (include "headcount.value" $value) }}
{{- $options = append $options (printf "%s=%s" $option $text) }}
{{- end }}
{{- range $option, $_ := index .Values.secrets "kafka-option" }}
{{- $prefix := hasSuffix ".location" $option | ternary "" "file:" }}
{{- $options = append $options (printf "%s=%s/run/secrets/headcount/kafka/%s" $option $prefix $option) }}
{{- end }}
{{- join ";" $options }}
{{- end }}

{{/* All variables of the service. */}}
{{- define "headcount.env" -}}
{{- range $flag, $value := .Values.config }}
{{- if has $flag (list "no-ui" "allow-sketches") }}
{{- if $value }}
- name: {{ include "headcount.variable" $flag }}
  value: "true"
{{- end }}
{{- else if and (ne $flag "kafka-option") (not (and (kindIs "slice" $value) (empty $value))) }}
- name: {{ include "headcount.variable" $flag }}
  value: {{ include "headcount.value" $value | quote }}
{{- end }}
{{- end }}
{{- range $flag, $_ := omit .Values.secrets "kafka-option" }}
- name: {{ include "headcount.variable" $flag }}
  value: file:/run/secrets/headcount/{{ $flag }}
{{- end }}
{{- with include "headcount.kafkaOption" . }}
- name: HEADCOUNT_KAFKA_OPTION
  value: {{ . | quote }}
{{- end }}
{{- if .Values.caCertificates }}
- name: SSL_CERT_FILE
  value: /run/secrets/headcount/ca-certificates.pem
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The volume with a file for each secret; nothing if there are none. */}}
{{- define "headcount.secretSources" -}}
{{- range $flag, $secret := omit .Values.secrets "kafka-option" }}
- secret:
    name: {{ $secret.name }}
    items: [{key: {{ $secret.key | quote }}, path: {{ $flag }}}]
{{- end }}
{{- range $option, $secret := index .Values.secrets "kafka-option" }}
- secret:
    name: {{ $secret.name }}
    items: [{key: {{ $secret.key | quote }}, path: kafka/{{ $option }}}]
{{- end }}
{{- range $kind, $source := .Values.caCertificates }}
- {{ $kind }}:
    name: {{ $source.name }}
    items: [{key: {{ $source.key | quote }}, path: ca-certificates.pem}]
{{- end }}
{{- end }}
