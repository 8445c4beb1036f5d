{{- define "imageprompt.labels" -}}
app.kubernetes.io/part-of: imageprompt
{{- end }}

{{- define "imageprompt.selector" -}}
app.kubernetes.io/name: imageprompt
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "imageprompt.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{- /* Pod security level `restricted`, for every container and every pod of ours. */ -}}
{{- define "imageprompt.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "imageprompt.pod.security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* A changed setting starts new pods. */ -}}
{{- define "imageprompt.annotations" -}}
cluster-autoscaler.kubernetes.io/safe-to-evict: "true"
checksum/settings: {{ include "imageprompt.settings" . | sha256sum }}
{{- end }}

{{- define "imageprompt.settings" -}}
{{- $settings := .Values.settings }}
{{- if .Values.otlp.enabled }}
{{- $settings = merge (dict "OTEL_EXPORTER_OTLP_ENDPOINT" .Values.otlp.endpoint) $settings }}
{{- end }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The API's public paths. /metrics is left out on purpose: Prometheus asks the pods themselves. */ -}}
{{- define "imageprompt.paths" -}}
- {path: /generate, type: Exact}
- {path: /, type: Exact}
- {path: /static, type: Prefix}
- {path: /jobs, type: Prefix}
- {path: /models, type: Prefix}
- {path: /v1, type: Prefix}
- {path: /hf, type: Prefix}
- {path: /healthz, type: Prefix}
- {path: /docs, type: Prefix}
- {path: /openapi.json, type: Exact}
{{- end }}

{{- /* Public addresses: neither private networks nor a cloud's metadata. */ -}}
{{- define "imageprompt.public.ipv4" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    except:
      - 10.0.0.0/8
      - 100.64.0.0/10
      - 168.63.129.16/32
      - 169.254.0.0/16
      - 172.16.0.0/12
      - 192.0.0.0/24
      - 192.168.0.0/16
      - 198.18.0.0/15
      - 224.0.0.0/3
{{- end }}
