{{/* What every pod of ours is: not root, nothing of the host's, no token of the Kubernetes API. */}}
{{- define "dbserve.pod" -}}
automountServiceAccountToken: false
# Otherwise a Service called dbserve would set DBSERVE_PORT, which is a setting.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .place.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .place.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .place.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .place.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "dbserve.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "dbserve.selector" . | nindent 8 }}
{{- end }}

{{- define "dbserve.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Redis as one of its users: dict "root" "user". */}}
{{- define "dbserve.env.redis" -}}
- name: DBSERVE_REDIS_URL
  value: {{ include "dbserve.redisUrl" .root | quote }}
- name: DBSERVE_REDIS_USERNAME
  value: {{ .user }}
- name: DBSERVE_REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "dbserve.secrets.redis" .root }}, key: {{ .user }}-password}
{{- if .root.Values.redis.tls.enabled }}
- name: DBSERVE_REDIS_CA_FILE
  value: /etc/redis-tls/ca.crt
{{- end }}
{{- end }}

{{- define "dbserve.redisUrl" -}}
{{- if .Values.redis.enabled -}}
{{ ternary "rediss" "redis" .Values.redis.tls.enabled }}://{{ include "dbserve.fullname" . }}-redis.{{ .Release.Namespace }}.svc:6379/0
{{- else -}}
{{ required "redis.external.url is needed where redis.enabled is false" .Values.redis.external.url }}
{{- end -}}
{{- end }}

{{- define "dbserve.env.artifacts" -}}
- name: DBSERVE_ARTIFACTS
{{- if eq .Values.artifacts.kind "pvc" }}
  value: /var/lib/dbserve/artifacts
{{- else }}
  value: {{ required "artifacts.object.uri is needed where artifacts.kind is object" .Values.artifacts.object.uri | quote }}
{{- end }}
- name: DBSERVE_CACHE_DIR
  value: /var/lib/dbserve/cache
# The home directory is read-only: what caches there does so in a directory of the pod.
- name: HOME
  value: /tmp
{{- end }}

{{- define "dbserve.env.settings" -}}
{{- $settings := .Values.settings }}
{{- if and .Values.data.existingClaim (kindIs "invalid" $settings.data_allow) }}
{{- $settings = merge (dict "data_allow" .Values.data.mountPath) $settings }}
{{- end }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
- name: DBSERVE_{{ upper $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "dbserve.envFrom.artifacts" -}}
{{- if and (eq .Values.artifacts.kind "object") .Values.artifacts.object.existingSecret }}
envFrom:
  - secretRef: {name: {{ .Values.artifacts.object.existingSecret }}}
{{- end }}
{{- end }}

{{/* Where pods of dbserve write, and what they share. */}}
{{- define "dbserve.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/lib/dbserve/cache}
{{- if eq .Values.artifacts.kind "pvc" }}
- {name: artifacts, mountPath: /var/lib/dbserve/artifacts}
{{- end }}
{{- if .Values.data.existingClaim }}
- {name: data, mountPath: {{ .Values.data.mountPath }}, readOnly: true}
{{- end }}
{{- if .Values.redis.tls.enabled }}
- {name: redis-tls, mountPath: /etc/redis-tls, readOnly: true}
{{- end }}
{{- end }}

{{/* dict "root" "cache" */}}
{{- define "dbserve.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 8Gi}
- name: cache
  emptyDir: {sizeLimit: {{ .cache }}}
{{- if eq .root.Values.artifacts.kind "pvc" }}
- name: artifacts
  persistentVolumeClaim: {claimName: {{ include "dbserve.artifactsClaim" .root }}}
{{- end }}
{{- if .root.Values.data.existingClaim }}
- name: data
  persistentVolumeClaim: {claimName: {{ .root.Values.data.existingClaim }}, readOnly: true}
{{- end }}
{{- if .root.Values.redis.tls.enabled }}
{{ include "dbserve.volumes.redisCa" .root }}
{{- end }}
{{- end }}

{{- define "dbserve.volumes.redisCa" -}}
- name: redis-tls
  secret:
    secretName: {{ required "redis.tls.existingSecret is needed where redis.tls.enabled" .Values.redis.tls.existingSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}

{{/* For Ray processes that KubeRay does not start, beside a mount of the token. */}}
{{- define "dbserve.env.token" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /run/secrets/ray/auth_token
{{- end }}
