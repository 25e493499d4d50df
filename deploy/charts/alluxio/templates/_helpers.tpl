{{- define "alluxio.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a part; never changes. Call with (list . "role"). */}}
{{- define "alluxio.selector" -}}
app: alluxio
release: {{ (index . 0).Release.Name }}
role: {{ index . 1 }}
{{- end -}}

{{/* Labels of the objects of a part. */}}
{{- define "alluxio.labels" -}}
{{ include "alluxio.selector" . }}
app.kubernetes.io/name: alluxio
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 | trimPrefix "alluxio-" }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end -}}

{{/* Labels of the pods of a part; those of the selector cannot be overridden. */}}
{{- define "alluxio.podLabels" -}}
{{- mergeOverwrite (deepCopy (index . 0).Values.podLabels) (fromYaml (include "alluxio.selector" .)) | toYaml -}}
{{- end -}}

{{/* Labels and annotations of the pods of a part. */}}
{{- define "alluxio.podMeta" -}}
{{- $ := index . 0 -}}
labels: {{- include "alluxio.podLabels" . | nindent 2 }}
annotations:
  {{- /* A changed configuration restarts the pods that read it. */}}
  checksum/config: {{ include "alluxio.siteProperties" $ | sha256sum }}
  {{- with $.Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end -}}

{{- define "alluxio.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* An image of others. Call with its values. */}}
{{- define "alluxio.sidecarImage" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end -}}
{{- end -}}

{{- define "alluxio.etcdEndpoints" -}}
{{- if .Values.etcd.enabled -}}
http://{{ include "alluxio.fullname" . }}-etcd.{{ .Release.Namespace }}:2379
{{- else -}}
{{- required "etcd.enabled is false: set etcd.endpoints, for example [\"http://etcd:2379\"]" (join "," .Values.etcd.endpoints) -}}
{{- end -}}
{{- end -}}

{{/* alluxio-site.properties. */}}
{{- define "alluxio.siteProperties" -}}
alluxio.cluster.name={{ .Values.cluster.name }}
alluxio.etcd.endpoints={{ include "alluxio.etcdEndpoints" . }}
{{- if .Values.etcd.existingSecret }}
alluxio.etcd.username=${env.ALLUXIO_ETCD_USERNAME}
alluxio.etcd.password=${env.ALLUXIO_ETCD_PASSWORD}
{{- end }}
{{- if .Values.etcd.tls.enabled }}
alluxio.etcd.tls.enabled=true
alluxio.etcd.tls.ca.cert=/opt/alluxio/etcd-tls/ca.crt
{{- if .Values.etcd.tls.clientCert }}
alluxio.etcd.tls.client.cert=/opt/alluxio/etcd-tls/tls.crt
alluxio.etcd.tls.client.key=/opt/alluxio/etcd-tls/tls.key
{{- end }}
{{- end }}
alluxio.k8s.env.deployment=true
alluxio.worker.rpc.port={{ .Values.worker.ports.rpc }}
alluxio.worker.data.port={{ .Values.worker.ports.data }}
alluxio.worker.web.port={{ .Values.worker.ports.web }}
{{- $dirs := list -}}{{- $sizes := list -}}
{{- range .Values.worker.pageStore.dirs -}}
{{- $dirs = append $dirs (printf "/var/lib/alluxio/%s" .name) -}}{{- $sizes = append $sizes .size -}}
{{- end }}
alluxio.worker.page.store.dirs={{ join "," $dirs }}
alluxio.worker.page.store.sizes={{ join "," $sizes }}
alluxio.worker.page.store.page.size={{ .Values.worker.pageStore.pageSize }}
alluxio.worker.identity.uuid.file.path={{ first $dirs }}/identity/worker_identity
{{- if .Values.worker.domainSocket.enabled }}
alluxio.worker.data.server.domain.socket.address=/opt/domain
alluxio.worker.data.server.domain.socket.as.uuid=true
{{- $uids := .Values.worker.domainSocket.allowedUids }}
{{- if .Values.csi.enabled }}{{ $uids = append $uids .Values.csi.mounter.runAsUser }}{{ end }}
{{- with $uids }}
alluxio.worker.data.server.domain.socket.allowed.uids={{ range $i, $uid := uniq . }}{{ if $i }},{{ end }}{{ int64 $uid }}{{ end }}
{{- end }}
alluxio.user.domain.socket.trusted.uids={{ int64 .Values.worker.runAsUser }}
{{- end }}
alluxio.fuse.web.port={{ .Values.fuse.webPort }}
alluxio.fuse.web.bind.host=0.0.0.0
{{- range $key, $value := .Values.properties }}
{{ $key }}={{ $value }}
{{- end }}
{{- end -}}

{{/* Where etcd's and the storages' secrets enter a container. */}}
{{- define "alluxio.secretEnv" -}}
{{- if .Values.etcd.existingSecret }}
- name: ALLUXIO_ETCD_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .Values.etcd.existingSecret }}, key: username}}
- name: ALLUXIO_ETCD_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.etcd.existingSecret }}, key: password}}
{{- end }}
{{- end -}}

{{- define "alluxio.envFrom" -}}
{{- with .Values.credentials.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}

{{- define "alluxio.confMounts" -}}
- {name: config, mountPath: /opt/alluxio/conf, readOnly: true}
{{- if .Values.etcd.tls.enabled }}
- {name: etcd-tls, mountPath: /opt/alluxio/etcd-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "alluxio.confVolumes" -}}
- name: config
  configMap: {name: {{ include "alluxio.fullname" . }}-config}
{{- if .Values.etcd.tls.enabled }}
- name: etcd-tls
  secret:
    secretName: {{ required "etcd.tls.enabled needs etcd.tls.existingSecret" .Values.etcd.tls.existingSecret }}
{{- end }}
{{- end -}}

{{- define "alluxio.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where and how important the pods of a part are. Call with the part's values. */}}
{{- define "alluxio.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* No privilege, nothing written to the image. */}}
{{- define "alluxio.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
