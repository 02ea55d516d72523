{{/* Always the same: it becomes the label `job`, which the alerts look for. */}}
{{- define "bridge.name" -}}{{- .Chart.Name -}}{{- end -}}

{{/* Short enough that what is added (-headless, -0) still fits into 63 characters. */}}
{{- define "bridge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default (include "bridge.name" .) .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bridge.selector" -}}
app.kubernetes.io/name: {{ include "bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: bridge
{{- end -}}

{{/* Labels of an object. Argument: a list of the root and the labels that this object has besides, or the root alone. */}}
{{- define "bridge.labels" -}}
{{- $root := . -}}
{{- $more := dict -}}
{{- if kindIs "slice" . -}}{{- $root = first . -}}{{- $more = last . -}}{{- end -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "bridge.selector" $root }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with merge (dict) $more $root.Values.commonLabels }}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- define "bridge.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "bridge.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "bridge.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
Whether there is one replica. While it stops nobody can take over, so whatever delays its end delays the next one's beginning: it
neither waits before it stops nor for the next request on an idle connection.
*/}}
{{- define "bridge.isAlone" -}}
{{- if and (not .Values.autoscaling.enabled) (le (int .Values.replicas) 1) -}}
true
{{- end -}}
{{- end -}}

{{/* Where the Secret's keys are files. */}}
{{- define "bridge.secretDir" -}}/run/secrets/sendbird-bridge{{- end -}}
{{- define "bridge.serverTlsDir" -}}/run/secrets/sendbird-bridge-server-tls{{- end -}}
{{- define "bridge.adminTlsDir" -}}/run/secrets/sendbird-bridge-admin-tls{{- end -}}
{{- define "bridge.testTlsDir" -}}/run/secrets/sendbird-bridge-test-tls{{- end -}}

{{/*
Whether there is a pod for `helm test`: where senders need a certificate, it must have one, and it does not write the header of the
PROXY protocol.
*/}}
{{- define "bridge.hasTest" -}}
{{- $certified := or (not .Values.tls.server.clientCaKey) .Values.test.clientCertificate.secretName -}}
{{- if and .Values.test.enabled $certified (not .Values.config.server.proxy_protocol) -}}
true
{{- end -}}
{{- end -}}

{{/*
What the restricted Pod Security asks for, and a user. OpenShift refuses pods that name one outside the range of their
namespace, and sets user and fsGroup itself where a pod names none.
*/}}
{{- define "bridge.podSecurityContext" -}}
{{- $user := .Values.securityContext.user -}}
{{- if eq (toString $user) "auto" -}}
{{- $user = ternary "cluster" 65532 (.Capabilities.APIVersions.Has "security.openshift.io/v1") -}}
{{- end -}}
runAsNonRoot: true
{{- if ne (toString $user) "cluster" }}
runAsUser: {{ int64 $user }}
runAsGroup: {{ int64 $user }}
fsGroup: {{ int64 $user }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "bridge.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
Helm reads numbers as floating point, and would write 4096 as 4096.0, which is no whole number in TOML. Also drops what
is null. Works on the map in place. Argument: a map.
*/}}
{{- define "bridge.wholeNumbers" -}}
{{- $map := . -}}
{{- range $key, $value := $map -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $map $key -}}
{{- else if kindIs "map" $value -}}
{{- include "bridge.wholeNumbers" $value -}}
{{- else if kindIs "slice" $value -}}
{{- range $item := $value -}}{{- if kindIs "map" $item -}}{{- include "bridge.wholeNumbers" $item -}}{{- end -}}{{- end -}}
{{- else if and (kindIs "float64" $value) (eq (float64 (int64 $value)) $value) -}}
{{- $_ := set $map $key (int64 $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Refuses secrets that are written down: they would lie in a ConfigMap. The names are those of src/config/layers.rs, but
for the names of users and clients. Argument: a list of a map and its path.
*/}}
{{- define "bridge.refuseSecrets" -}}
{{- $path := index . 1 -}}
{{- range $key, $value := index . 0 -}}
{{- if kindIs "map" $value -}}
{{- include "bridge.refuseSecrets" (list $value (printf "%s.%s" $path $key)) -}}
{{- else if and (has $key (list "api_tokens" "path_secret" "value" "token" "url" "password" "nkey_seed" "creds" "client_secret")) $value -}}
{{- fail (printf "%s.%s: expected %s_file, the path of a file from a Secret (%s/KEY), but found the secret itself, which would lie in a ConfigMap" $path $key $key (include "bridge.secretDir" $)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A size of the bridge ("8GiB") or of Kubernetes ("16Gi") in MiB, 0 for what is written otherwise. */}}
{{- define "bridge.mebibytes" -}}
{{- $text := . | toString | replace " " "" -}}
{{- if regexMatch "^[0-9]+(\\.[0-9]+)?[kKMGT]i?B?$" $text -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $unit := regexFind "[kKMGT]i?" $text -}}
{{- $binary := dict "Ki" 0.0009765625 "Mi" 1.0 "Gi" 1024.0 "Ti" 1048576.0 -}}
{{- $decimal := dict "k" 0.00095367431640625 "K" 0.00095367431640625 "M" 0.95367431640625 "G" 953.67431640625 "T" 953674.31640625 -}}
{{- $factor := get (merge $binary $decimal) $unit -}}
{{- mulf $number $factor -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* What no schema can say: what does not go together. */}}
{{- define "bridge.check" -}}
{{- $v := .Values -}}
{{- if not $v.secret.name -}}
{{- fail "secret.name: expected the name of an existing Secret with the keys api-tokens and admin-token (kubectl create secret generic sendbird-bridge --from-file=api-tokens --from-file=admin-token), but found none" -}}
{{- end -}}
{{- range $value, $labels := dict "commonLabels" $v.commonLabels "podLabels" $v.podLabels -}}
{{- range $label, $_ := $labels -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" "sendbird-bridge/service") -}}
{{- fail (printf "%s: expected labels that the chart does not set itself, but found %s" $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "bridge.refuseSecrets" (list $v.config "config") -}}
{{- range $key, $instead := dict "server.listen" "the chart's, port 8080 in the pod; see service.port and service.ipFamilies" "admin.listen" "the chart's, port 9090 in the pod" "server.tls" "tls.server.secretName" "admin.tls" "tls.admin.secretName" "journal.dir" "the chart's; see journal.volume" -}}
{{- $parts := splitList "." $key -}}
{{- if hasKey (default dict (get $v.config (first $parts))) (last $parts) -}}
{{- fail (printf "config.%s: expected nothing, because it is %s, but found a value" $key $instead) -}}
{{- end -}}
{{- end -}}
{{- $grace := int $v.terminationGracePeriodSeconds -}}
{{- $least := add (int $v.preStopSeconds) 25 -}}
{{- if lt $grace (int $least) -}}
{{- fail (printf "terminationGracePeriodSeconds: expected at least %d (preStopSeconds, 20 s in which the bridge stops, 5 s to spare), but found %d" $least $grace) -}}
{{- end -}}
{{- if and $v.config.reconcile (or $v.autoscaling.enabled (gt (int $v.replicas) 1)) -}}
{{- fail "config.reconcile: expected replicas=1 without autoscaling with it, because each of several bridges would publish what the others have stored, but found more" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (eq $v.journal.volume "emptyDir") -}}
{{- fail "autoscaling.enabled: expected journal.volume=claim with it, but found emptyDir: what a removed replica has not yet published would be lost" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) -}}
{{- fail (printf "autoscaling.maxReplicas: expected at least minReplicas (%d), but found %d" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and $v.journal.existingClaim (or $v.autoscaling.enabled (gt (int $v.replicas) 1) (ne $v.journal.volume "claim")) -}}
{{- fail "journal.existingClaim: expected journal.volume=claim and replicas=1 without autoscaling with it, because each replica needs a volume of its own, but found something else" -}}
{{- end -}}
{{- $budget := default "8GiB" $v.config.journal.max_bytes -}}
{{- $size := include "bridge.mebibytes" $v.journal.size | float64 -}}
{{- if and (not $v.journal.existingClaim) (gt $size 0.0) (ge (include "bridge.mebibytes" $budget | float64) $size) -}}
{{- fail (printf "journal.size: expected more than config.journal.max_bytes (%s), because the state of the sinks and the ids of the window need room too, but found %s" $budget $v.journal.size) -}}
{{- end -}}
{{- $most := include "bridge.mebibytes" $budget | float64 -}}
{{- if and (gt $most 0.0) (lt $most 1.0) -}}
{{- fail (printf "config.journal.max_bytes: expected at least 1MiB, but found %s" $budget) -}}
{{- end -}}
{{- $retained := default "1GiB" $v.config.journal.retain_bytes -}}
{{- if and (gt $most 0.0) (gt (include "bridge.mebibytes" $retained | float64) $most) -}}
{{- fail (printf "config.journal.retain_bytes: expected at most config.journal.max_bytes (%s), but found %s" $budget $retained) -}}
{{- end -}}
{{- /* Variables of the container may be configuration too. */ -}}
{{- if not $v.env -}}
{{- if and $v.config.server.proxy_protocol (not $v.config.access.trusted_proxies) -}}
{{- fail "config.server.proxy_protocol: expected the load balancer's networks in config.access.trusted_proxies with it, but found none" -}}
{{- end -}}
{{- $needs := dict "kafka" "brokers" "nats" "servers" "rabbitmq" "url_file" -}}
{{- range $name, $sink := default dict $v.config.sinks -}}
{{- $key := get $needs $sink.type -}}
{{- if and $key (not (get $sink $key)) -}}
{{- fail (printf "config.sinks.%s.%s: expected it because the type is %s, but found none" $name $key $sink.type) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.tls.server.clientCaKey (not $v.tls.server.secretName) -}}
{{- fail "tls.server.clientCaKey: expected tls.server.secretName with it, but found none" -}}
{{- end -}}
{{- if and $v.test.clientCertificate.secretName (not $v.tls.server.clientCaKey) -}}
{{- fail "test.clientCertificate.secretName: expected tls.server.clientCaKey with it, because nobody asks for a certificate otherwise, but found none" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: expected the name that Sendbird is to call, but found none" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: expected at least one Gateway, but found none" -}}
{{- end -}}
{{- end -}}

{{/*
The address that both listeners listen on: [::] takes connections of both families, but a node whose kernel has IPv6 switched
off does not know it.
*/}}
{{- define "bridge.listen" -}}
{{- $dual := has .Values.service.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack") -}}
{{- ternary "[::]" "0.0.0.0" (or $dual (has "IPv6" .Values.service.ipFamilies)) -}}
{{- end -}}

{{/* The families of a Service's addresses. */}}
{{- define "bridge.families" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Refuses what would change the claims: Kubernetes changes no volumeClaimTemplates of a StatefulSet, and the API server's refusal does
not say what to do. Argument: a list of the root and the StatefulSet that runs, empty if there is none.
*/}}
{{- define "bridge.checkClaims" -}}
{{- $root := first . -}}
{{- $live := last . -}}
{{- $j := $root.Values.journal -}}
{{- if $live -}}
{{- $advice := printf "so first change the claims, and run: kubectl delete statefulset %s --namespace %s --cascade=orphan; see \"Another size of the journal\" in the chart's README.md" (include "bridge.fullname" $root) $root.Release.Namespace -}}
{{- $claims := dig "spec" "volumeClaimTemplates" list $live -}}
{{- $wanted := and (eq $j.volume "claim") (not $j.existingClaim) -}}
{{- if ne (empty $claims) (not $wanted) -}}
{{- fail (printf "journal: expected the kind of volume (journal.volume, journal.existingClaim) that the StatefulSet that runs has, because Kubernetes cannot change it, but found another; %s" $advice) -}}
{{- end -}}
{{- if $wanted -}}
{{- $claim := first $claims -}}
{{- $size := dig "spec" "resources" "requests" "storage" "" $claim -}}
{{- $found := dict "storageClassName" (dig "spec" "storageClassName" "" $claim) "accessModes" (dig "spec" "accessModes" list $claim | join ",") "annotations" (dig "metadata" "annotations" dict $claim | toJson) -}}
{{- $asked := dict "storageClassName" $j.storageClassName "accessModes" (join "," $j.accessModes) "annotations" (toJson $j.annotations) -}}
{{- $sizes := list (include "bridge.mebibytes" $size) (include "bridge.mebibytes" $j.size) -}}
{{- if and (ne (first $sizes) (last $sizes)) (not (has "0" $sizes)) -}}
{{- fail (printf "journal.size: expected %s, which the StatefulSet that runs has, because Kubernetes cannot change it, but found %s; %s" $size $j.size $advice) -}}
{{- end -}}
{{- range $key, $value := $asked -}}
{{- if ne $value (get $found $key) -}}
{{- fail (printf "journal.%s: expected %s, which the StatefulSet that runs has, because Kubernetes cannot change it, but found %s; %s" $key (get $found $key | quote) ($value | quote) $advice) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
How many replicas a manifest with autoscaling asks for: as many as run, because the API server sets 1 where the field disappears.
Nothing if the field stays without us: helm applies on the server's side, and the autoscaler holds the field too. A number would
then be in conflict with it as soon as it has changed. Argument: the StatefulSet that runs, empty if there is none.
*/}}
{{- define "bridge.scaledReplicas" -}}
{{- $applied := false -}}
{{- $held := false -}}
{{- range dig "metadata" "managedFields" list . -}}
{{- if hasPrefix "helm" .manager -}}
{{- $applied = or $applied (eq .operation "Apply") -}}
{{- else -}}
{{- $held = or $held (hasKey (dig "fieldsV1" "f:spec" dict .) "f:replicas") -}}
{{- end -}}
{{- end -}}
{{- if and . (not (and $applied $held)) -}}
{{- dig "spec" "replicas" 1 . -}}
{{- end -}}
{{- end -}}

{{- define "bridge.path" -}}{{- default "/webhooks/sendbird" .Values.config.server.path -}}{{- end -}}

{{/* The configuration file. */}}
{{- define "bridge.toml" -}}
{{- include "bridge.check" . -}}
{{- $v := .Values -}}
{{- $secrets := include "bridge.secretDir" . -}}
{{- $access := dict -}}
{{- if and $v.secret.apiTokensKey (ne (default "required" $v.config.access.signature) "off") -}}
{{- $access = dict "api_tokens_file" (printf "%s/%s" $secrets $v.secret.apiTokensKey) -}}
{{- end -}}
{{- $server := dict "listen" (printf "%s:8080" (include "bridge.listen" .)) -}}
{{- if include "bridge.isAlone" . -}}
{{- $_ := set $server "linger" "0s" -}}
{{- end -}}
{{- if $v.tls.server.secretName -}}
{{- $dir := include "bridge.serverTlsDir" . -}}
{{- $tls := dict "cert_file" (printf "%s/tls.crt" $dir) "key_file" (printf "%s/tls.key" $dir) -}}
{{- if $v.tls.server.clientCaKey -}}
{{- $_ := set $tls "client_ca_file" (printf "%s/%s" $dir $v.tls.server.clientCaKey) -}}
{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- $admin := dict "listen" (printf "%s:9090" (include "bridge.listen" .)) "token_file" (printf "%s/%s" $secrets $v.secret.adminTokenKey) -}}
{{- if $v.tls.admin.secretName -}}
{{- $dir := include "bridge.adminTlsDir" . -}}
{{- $_ := set $admin "tls" (dict "cert_file" (printf "%s/tls.crt" $dir) "key_file" (printf "%s/tls.key" $dir)) -}}
{{- end -}}
{{- $journal := dict "dir" "/var/lib/sendbird-bridge/journal" -}}
{{- $ours := dict "server" $server "admin" $admin "access" $access "journal" $journal -}}
{{- $all := mergeOverwrite $ours (deepCopy $v.config) -}}
{{- include "bridge.wholeNumbers" $all -}}
{{- range $section := keys $all -}}
{{- if not (get $all $section) -}}{{- $_ := unset $all $section -}}{{- end -}}
{{- end -}}
{{- toToml $all -}}
{{- end -}}

{{/* The key of the Secret that a path below its directory means. Argument: a list of the path and the value's name. */}}
{{- define "bridge.keyOf" -}}
{{- $dir := printf "%s/" (include "bridge.secretDir" .) -}}
{{- if not (hasPrefix $dir (first .)) -}}
{{- fail (printf "%s: expected a file below %s, which helm test can read too, but found %s; or set test.enabled=false" (last .) $dir (first .)) -}}
{{- end -}}
{{- trimPrefix $dir (first .) -}}
{{- end -}}
