{{/* What cannot work is refused before anything is made. */}}
{{- define "herd.preflight" -}}
{{- if and .Values.preflight.requireCRDs (not (.Capabilities.APIVersions.Has "ray.io/v1")) -}}
{{- fail "preflight.requireCRDs: expected KubeRay's resources (ray.io/v1) in this cluster, found none; install its operator first (docs/kubernetes.md), or set it to false to render without" -}}
{{- end -}}
{{- with .Values.weights -}}
{{- if and (eq .source "pvc") (not .claim) -}}
{{- fail "weights.claim: expected the name of a PersistentVolumeClaim with weights.source=pvc, found none; name one" -}}
{{- end -}}
{{- if and (eq .source "csi") (not .csi) -}}
{{- fail "weights.csi: expected a driver with weights.source=csi, found none; name one" -}}
{{- end -}}
{{- if and (eq .source "image") (not .image) -}}
{{- fail "weights.image: expected the reference of an OCI image with weights.source=image, found none; name one" -}}
{{- end -}}
{{- end -}}
{{- $host := dig "http" "host" "0.0.0.0" .Values.settings -}}
{{- if or (hasPrefix "127." $host) (eq $host "localhost") (eq $host "::1") -}}
{{- fail (printf "settings.http.host: expected an address that other pods reach, found %s; leave it out" $host) -}}
{{- end -}}
{{- if eq (include "herd.httpPort" .) (include "herd.grpcPort" .) -}}
{{- fail (printf "settings.http.port, settings.grpc.port: expected two ports, found %s for both; change one" (include "herd.httpPort" .)) -}}
{{- end -}}
{{- $set := concat (include "herd.environment" . | fromYamlArray) (include "herd.operatorsEnvironment" . | fromYamlArray) -}}
{{- range $mine := .Values.pods.env -}}
{{- range $set -}}
{{- if eq .name $mine.name -}}
{{- fail (printf "pods.env: expected names that nobody else sets, found %s, which the chart or KubeRay sets; leave it out" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (include "herd.asksForCertificates" .) (not .Values.operatorKey.tlsSecret) -}}
{{- fail "operatorKey.tlsSecret: expected a Secret with a certificate that Prometheus shows, as settings.tls.client_ca asks for one, found none; name one, or set serviceMonitor.enabled=false" -}}
{{- end -}}
{{- if and .Values.workers.routers.gpus (eq (dig "router" "device" "auto" .Values.settings) "cpu") -}}
{{- fail "workers.routers.gpus: expected 0 with settings.router.device=cpu, found 1; change one of them" -}}
{{- end -}}
{{- if and (not .Values.workers.routers.gpus) (eq (dig "router" "device" "auto" .Values.settings) "cuda") -}}
{{- fail "workers.routers.gpus: expected 1 with settings.router.device=cuda, found 0; change one of them" -}}
{{- end -}}
{{- if and (dig "context" "shards" 0 .Values.settings) .Values.workers.routers.gpus -}}
{{- fail "settings.context.shards: expected none with workers.routers.gpus, as context shards go with routers on processors; change one of them" -}}
{{- end -}}
{{- if and (dig "context" "shards" 0 .Values.settings) (not (dig "context" "kv_bytes" nil .Values.settings)) -}}
{{- fail "settings.context.kv_bytes: expected bytes where there are context shards, found none; set them, or let `herd plan` tell them" -}}
{{- end -}}
{{- end -}}
