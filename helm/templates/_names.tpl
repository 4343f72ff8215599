{{/* Names and labels. */}}

{{- define "herd.name" -}}
{{- $name := .Release.Name -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf "release name: expected at most 40 characters, as KubeRay appends to it, found %q; choose a shorter one" $name) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "release name: expected letters, digits and dashes, a letter first, found %q; choose another" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "herd.selector" -}}
app.kubernetes.io/name: herd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "herd.labels" -}}
{{ include "herd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "herd.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "herd.hasTls" -}}
{{- if dig "tls" "cert" "" .Values.settings -}}true{{- end -}}
{{- end -}}

{{- define "herd.asksForCertificates" -}}
{{- if dig "tls" "client_ca" "" .Values.settings -}}true{{- end -}}
{{- end -}}

{{- define "herd.asksForKeys" -}}
{{- if dig "auth" "keys_file" "" .Values.settings -}}true{{- end -}}
{{- end -}}

{{/* Whether `helm test` has what front doors ask for. */}}
{{- define "herd.isTestable" -}}
{{- if and (or .Values.operatorKey.tlsSecret (not (include "herd.asksForCertificates" .))) (or .Values.operatorKey.secret (not (include "herd.asksForKeys" .))) -}}true{{- end -}}
{{- end -}}

{{- define "herd.httpPort" -}}
{{- dig "http" "port" 8000 .Values.settings | int -}}
{{- end -}}

{{- define "herd.grpcPort" -}}
{{- dig "grpc" "port" 9000 .Values.settings | int -}}
{{- end -}}

{{/* herd.yaml as pods read it: what was set, and nothing else. */}}
{{- define "herd.settings" -}}
{{ toYaml .Values.settings }}
{{ end -}}
