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
{{- if and (eq .source "image") $.Values.preflight.requireCRDs (semverCompare "<1.33-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "weights.source: expected Kubernetes 1.35 or later with image, or 1.33 with its feature gate ImageVolume, found %s; choose another source" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- $host := dig "http" "host" "0.0.0.0" .Values.settings -}}
{{- if or (hasPrefix "127." $host) (eq $host "localhost") (eq $host "::1") -}}
{{- fail (printf "settings.http.host: expected an address that other pods reach, found %s; leave it out" $host) -}}
{{- end -}}
{{- if eq (include "herd.httpPort" .) (include "herd.grpcPort" .) -}}
{{- fail (printf "settings.http.port, settings.grpc.port: expected two ports, found %s for both; change one" (include "herd.httpPort" .)) -}}
{{- end -}}
{{- range $key, $port := dict "http" (include "herd.httpPort" .) "grpc" (include "herd.grpcPort" .) -}}
{{- if or (has (int $port) (list 8080 52365)) (and (ge (int $port) 10002) (le (int $port) 19999)) -}}
{{- fail (printf "settings.%s.port: expected a port that Ray leaves free in a front door's pod, found %s; choose one that is not 8080 (its metrics), 52365 (its agent) or 10002 to 19999 (its processes)" $key $port) -}}
{{- end -}}
{{- end -}}
{{- include "herd.refuseSharedFolders" . -}}
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
{{- if and .Values.serviceMonitor.enabled (include "herd.asksForKeys" .) (not .Values.operatorKey.secret) -}}
{{- fail "operatorKey.secret: expected a Secret with an operator's API key that Prometheus shows, as settings.auth.keys_file asks for one, found none; name one, or set serviceMonitor.enabled=false" -}}
{{- end -}}
{{- if and .Values.prometheusRule.enabled (not .Values.serviceMonitor.enabled) -}}
{{- fail "serviceMonitor.enabled: expected true with prometheusRule.enabled, as alerts read what it has scraped, found false; change one of them" -}}
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

{{/* Inside a folder that is mounted read-only nothing else can be mounted. */}}
{{- define "herd.refuseSharedFolders" -}}
{{- $mounts := list -}}
{{- if ne .Values.weights.source "none" -}}
{{- $mounts = append $mounts (dict "key" "weights.mountPath" "folder" .Values.weights.mountPath) -}}
{{- end -}}
{{- range $index, $secret := .Values.secrets -}}
{{- $mounts = append $mounts (dict "key" (printf "secrets[%d].mountPath" $index) "folder" $secret.mountPath) -}}
{{- end -}}
{{- $taken := list -}}
{{- range tuple "/etc/herd" "/tmp" "/dev/shm" -}}
{{- $taken = append $taken (dict "key" "the chart" "folder" .) -}}
{{- end -}}
{{- range $mount := $mounts -}}
{{- range $taken -}}
{{- $mine := printf "%s/" $mount.folder -}}
{{- $theirs := printf "%s/" .folder -}}
{{- if or (hasPrefix $mine $theirs) (hasPrefix $theirs $mine) -}}
{{- fail (printf "%s: expected a folder apart from those of other mounts, found %s beside %s of %s; choose another" $mount.key $mount.folder .folder .key) -}}
{{- end -}}
{{- end -}}
{{- $taken = append $taken $mount -}}
{{- end -}}
{{- end -}}
