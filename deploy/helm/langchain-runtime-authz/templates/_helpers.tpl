{{- define "authz.name" -}}
{{- printf "%s-agent" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "authz.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What every container may do: nothing but run. */}}
{{- define "authz.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "authz.pod" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* From where the application asks for decisions. */}}
{{- define "authz.opa" -}}
{{- if eq .Values.engine.kind "sidecar" -}}http://127.0.0.1:8181
{{- else if eq .Values.engine.kind "service" -}}{{ .Values.engine.url }}
{{- end -}}
{{- end -}}
