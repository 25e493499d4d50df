#!/bin/sh
# The entry point of the image: one word names the role, the rest goes to its program. tini is process 1 and passes
# signals on; every role but `fuse` replaces this shell, so that signals reach the program itself.
set -eu

ALLUXIO_HOME=${ALLUXIO_HOME:-/opt/alluxio}
export ALLUXIO_HOME

usage() {
  cat <<'USAGE'
Usage: entrypoint.sh ROLE [ARGUMENT...]

  worker [OPTION...]                 a worker of the cluster (arguments of `alluxio process start worker`)
  fuse [OPTION...] [MOUNT_POINT [ALLUXIO_PATH]]
                                     mount the namespace of the cluster; needs root, /dev/fuse and CAP_SYS_ADMIN
  fuse [OPTION...] UFS_URI MOUNT_POINT
                                     mount a bucket or a directory, without a cluster
        OPTION: -o NAME[=VALUE][,...], or --fuse-opts=NAME[=VALUE][,...]
  ensure-mount PATH UFS_URI [KEY=VALUE...]
                                     make PATH of the namespace show UFS_URI; nothing to do if it does
  csi-node [OPTION...]               the CSI driver on a node
  csi-controller [OPTION...]         the CSI driver's controller
  alluxio | alluxio-fuse | alluxio-csi [ARGUMENT...]
                                     the program itself

The configuration is $ALLUXIO_HOME/conf/alluxio-site.properties and -Dkey=value in ALLUXIO_JAVA_OPTS.

Examples:
  docker run IMAGE worker
  docker run --user 0 --device /dev/fuse --cap-add SYS_ADMIN IMAGE fuse s3://bucket/prefix /mnt/data -o allow_other
  docker run IMAGE alluxio info nodes
USAGE
}

say() { printf 'entrypoint: %s\n' "$*" >&2; }

# Wrong usage.
refuse() {
  say "$*"
  exit 2
}

# Becomes the program; an image that was built without it says so.
become() {
  command -v "$1" >/dev/null 2>&1 || refuse "$1 is not in this image"
  exec "$@"
}

# Mounts, and mounts again when the daemon is killed: the container stays, so the kubelet need not bind a dead mount.
# A daemon that ends by itself, with an error or without, ends the container.
fuse() {
  options='' uri='' point='' path=''
  while [ $# -gt 0 ]; do
    case $1 in
      --fuse-opts=*) options="$options,${1#--fuse-opts=}" ;;
      --fuse-opts) refuse "--fuse-opts needs a value: --fuse-opts=allow_other,ro" ;;
      -o)
        [ $# -gt 1 ] || refuse "-o needs a value: -o allow_other,ro"
        shift
        options="$options,$1"
        ;;
      '-o '*) options="$options,${1#-o }" ;;
      -o*) options="$options,${1#-o}" ;;
      -f | -n) ;;
      -*) refuse "fuse: unknown option $1; options of the mount are given with -o or --fuse-opts=" ;;
      *://*)
        [ -z "$uri" ] || refuse "fuse: two under storages were given, $uri and $1"
        uri=$1
        ;;
      '') ;;
      *)
        if [ -z "$point" ]; then
          point=$1
        elif [ -z "$path" ]; then
          path=$1
        else
          refuse "fuse: $1 is one argument too many"
        fi
        ;;
    esac
    shift
  done
  # An absolute directory as first of two names, without a cluster's configuration, is an under storage too; write it as
  # file:///directory.
  point=${point:-${MOUNT_POINT:-/mnt/alluxio-fuse}}
  if [ -n "$path" ]; then
    [ -z "$uri" ] || refuse "fuse: $path is one argument too many beside $uri and $point"
    options="$options,alluxio.fuse.mount.alluxio.path=$path"
  fi
  while [ "${options#,}" != "$options" ]; do options=${options#,}; done
  [ -e /dev/fuse ] || refuse "/dev/fuse is not in this container: docker run --device /dev/fuse --cap-add SYS_ADMIN, or privileged in Kubernetes"

  set -- mount -f
  [ -z "$options" ] || set -- "$@" -o "$options"
  [ -z "$uri" ] || set -- "$@" "$uri"
  set -- "$@" "$point"

  child='' stopped='' pause=1
  # A shell runs a trap when `wait` returns, which the signal makes it do at once.
  trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM INT
  while [ -z "$stopped" ]; do
    began=$(date +%s)
    alluxio-fuse "$@" &
    child=$!
    # The signal may have come between the test and the start.
    [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || :
    code=0
    wait "$child" || code=$?
    # A wait that a signal cut short says nothing of the child.
    while kill -0 "$child" 2>/dev/null; do
      code=0
      wait "$child" || code=$?
    done
    child=''
    [ -z "$stopped" ] || exit 0
    [ "$code" -gt 128 ] || exit "$code"
    [ $(($(date +%s) - began)) -lt 60 ] || pause=1
    say "alluxio-fuse was killed (signal $((code - 128))); it mounts $point again in $pause s"
    sleep "$pause" &
    wait $! || :
    pause=$((pause < 30 ? pause * 2 : 30))
  done
  exit 0
}

# Adds a mount to the cluster unless it is there.
ensure_mount() {
  [ $# -ge 2 ] || refuse "ensure-mount needs a path and an under storage: ensure-mount /data s3://bucket/prefix"
  path=$1 uri=$2
  shift 2
  table=$(alluxio mount list)
  # A line is `<ufs uri> on <path> properties={...}`; the URI may have gained or lost a slash at its end.
  shown=$(printf '%s\n' "$table" | awk -v path="$path" '$2 == "on" && $3 == path { print $1; exit }')
  if [ -n "$shown" ]; then
    [ "${shown%/}" = "${uri%/}" ] || refuse "$path shows $shown, not $uri; remove it first: alluxio mount remove --path $path"
    say "$path shows $uri already"
    exit 0
  fi
  # The options become arguments in place.
  count=$#
  while [ "$count" -gt 0 ]; do
    set -- "$@" --option "$1"
    shift
    count=$((count - 1))
  done
  exec alluxio mount add --path "$path" --ufs-uri "$uri" "$@"
}

[ $# -gt 0 ] || {
  usage >&2
  exit 2
}
role=$1
shift
case $role in
  worker | worker-only)
    # Nothing is ever formatted: the page store keeps what is whole and drops what is not.
    [ "${1:-}" != --no-format ] || shift
    become alluxio process start worker "$@"
    ;;
  fuse) fuse "$@" ;;
  ensure-mount) ensure_mount "$@" ;;
  csi-node) become alluxio-csi node "$@" ;;
  csi-controller) become alluxio-csi controller "$@" ;;
  alluxio | alluxio-fuse | alluxio-csi) become "$role" "$@" ;;
  master | master-only | job-master | job-worker | proxy | logserver | coordinator)
    refuse "there is no $role: workers answer for metadata and data themselves; run worker and fuse, and give them etcd (alluxio.etcd.endpoints)"
    ;;
  csiserver) refuse "csiserver is two here: csi-node on each node (--node-id, --endpoint) and csi-controller" ;;
  help | -h | --help) usage ;;
  *) refuse "unknown role $role; known are worker, fuse, ensure-mount, csi-node, csi-controller, alluxio, alluxio-fuse, alluxio-csi (help says more)" ;;
esac
