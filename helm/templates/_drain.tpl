{{/*
How long a pod may take to end, in one place. Each holds the next:

  grace     drain + 15 s: terminationGracePeriodSeconds; Ray ends its processes
  drain     drain.seconds, or shutdown + 5 s: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S; Ray Serve notices, and stops replicas
  shutdown  longest + 2 s, at least 10: Ray Serve's graceful_shutdown_timeout_s; a front door closes its ports
  longest   settings.limits.drain_s: the longest request that must finish where it began
*/}}

{{- define "herd.shutdownSeconds" -}}
{{- maxf 10 (addf (dig "limits" "drain_s" 10 .Values.settings | float64) 2) | ceil | int -}}
{{- end -}}

{{- define "herd.drainSeconds" -}}
{{- $least := add (include "herd.shutdownSeconds" .) 5 | int -}}
{{- if kindIs "invalid" .Values.drain.seconds -}}
{{- $least -}}
{{- else if lt (int .Values.drain.seconds) $least -}}
{{- fail (printf "drain.seconds: expected at least %d, as settings.limits.drain_s is %v, found %v; raise it, or lower the setting" $least (dig "limits" "drain_s" 10 .Values.settings) .Values.drain.seconds) -}}
{{- else -}}
{{- int .Values.drain.seconds -}}
{{- end -}}
{{- end -}}

{{- define "herd.graceSeconds" -}}
{{- add (include "herd.drainSeconds" .) 15 -}}
{{- end -}}
