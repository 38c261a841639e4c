#!/bin/sh
# Makes an authority, and certificates for NODES nodes of a PROJECT, one with GPUs and a coordinator, where there are none
# yet; those older than 30 days, of a year, are renewed. One that was revoked, or has ended, stays so.
set -eu
authority=${AUTHORITY:-/state/authority} certificates=${CERTIFICATES:-/certificates}
[ -d "$authority" ] || shoal certs init "$authority"
issue() {  # NAME [OPTION...]
    name=$1 && shift
    folder=$certificates/$name
    if [ ! -d "$folder" ]; then
        shoal certs issue "$name" --shoal compose --ca "$authority" --out "$folder" "$@"
    elif [ -n "$(find "$folder/member.pem" -mtime +30)" ]; then
        shoal certs renew "$folder" --ca "$authority" || echo "$name: as it was"
    fi
}
issue coordinator --role coordinator
issue "$PROJECT-gpu-node-1"
number=1
while [ "$number" -le "$NODES" ]; do
    issue "$PROJECT-node-$number"
    number=$((number + 1))
done
