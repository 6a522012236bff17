{{- define "roadstead.labels" -}}
{{ include "roadstead.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "roadstead.selector" -}}
app.kubernetes.io/name: roadstead
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "roadstead.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* The port of an address. */}}
{{- define "roadstead.port" -}}
{{ splitList ":" . | last }}
{{- end }}

{{/* A table of sidecar.toml: its values first, then its tables. JSON's scalars and lists are TOML's. */}}
{{- define "roadstead.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .table }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ include "roadstead.toml.key" $key }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- $inner := append $path (include "roadstead.toml.key" $key) }}

[{{ join "." $inner }}]
{{- include "roadstead.toml" (dict "table" $value "path" $inner) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "roadstead.toml.key" -}}
{{ if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ . | quote }}{{ end }}
{{- end }}

{{/* What `roadstead setup` makes hosts.toml of: a change of it needs a new pod, a change of anything else does not. */}}
{{- define "roadstead.setup.checksum" -}}
{{- $led := dict "listen" .Values.config.listen "containerd" .Values.containerd -}}
{{- range $name, $registry := .Values.config.registries -}}
{{- $_ := set $led $name (list $registry.hosts (dig "mirror" "listen" "" $registry)) -}}
{{- end -}}
{{ $led | toJson | sha256sum }}
{{- end }}

{{/* Refuses values that would leave a node without a way to pull this very image, or without a registry to lead to. */}}
{{- define "roadstead.check" -}}
{{- if .Values.containerd.setup -}}
{{- $host := splitList "/" .Values.image.repository | first -}}
{{- $mirrors := 0 -}}
{{- range $name, $registry := .Values.config.registries -}}
{{- if $registry.mirror -}}{{- $mirrors = add1 $mirrors -}}{{- end -}}
{{- range $registry.hosts -}}
{{- $covers := or (eq . $host) (eq (regexReplaceAll ":[0-9]+$" . "") (regexReplaceAll ":[0-9]+$" $host "")) (and (hasPrefix "*." .) (hasSuffix (trimPrefix "*" .) $host)) -}}
{{- if and $covers (not $.Values.containerd.allowBypass) -}}
{{- fail (printf "image.repository: %s is behind the sidecar (config.registries.%s.hosts: %s), so a node without its pod could never pull it: use another registry, or set containerd.allowBypass" $host $name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $mirrors -}}
{{- fail "config.registries: no registry has a mirror, so containerd cannot be led to one: set mirror.listen and mirror.upstream, or containerd.setup=false" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The step that writes or restores the files of containerd: as root, since they are root's, and with no capability. */}}
{{- define "roadstead.setup" -}}
- name: {{ .name }}
  image: {{ include "roadstead.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
  - setup
  - containerd
  - {{ .action }}
  - --config=/etc/roadstead/sidecar.toml
  - --root=/host
  - --containerd-config={{ .root.Values.containerd.configFile }}
  {{- if and .root.Values.containerd.allowBypass (eq .action "--write") }}
  - --allow-bypass
  {{- end }}
  {{- with .root.Values.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  securityContext:
    runAsUser: 0
    runAsGroup: 0
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  volumeMounts:
  - {name: roadstead, mountPath: /etc/roadstead, readOnly: true}
  - {name: containerd, mountPath: {{ printf "/host%s" (dir .root.Values.containerd.configFile) }}}
  - {name: state, mountPath: /host/var/lib/roadstead}
{{- end }}

{{- define "roadstead.setup.volumes" -}}
- name: roadstead
  configMap: {name: {{ .Release.Name }}}
- name: containerd
  hostPath: {path: {{ dir .Values.containerd.configFile }}, type: Directory}
- name: state
  hostPath: {path: /var/lib/roadstead, type: DirectoryOrCreate}
{{- end }}
