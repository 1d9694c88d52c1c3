{{- define "dbserve.redisConf" -}}
bind * -::*
dir /data
appendonly yes
appendfsync always
save ""
maxmemory {{ .Values.redis.maxmemory }}
maxmemory-policy noeviction
aclfile /etc/redis-users/users.acl
{{- if .Values.redis.tls.enabled }}
port 0
tls-port 6379
tls-cert-file /etc/redis-tls/tls.crt
tls-key-file /etc/redis-tls/tls.key
tls-ca-cert-file /etc/redis-tls/ca.crt
tls-auth-clients no
{{- else }}
port 6379
{{- end }}
{{- end }}
