#!/bin/sh
# Makes an authority, and certificates for NODES nodes of a PROJECT and a coordinator, where there are none yet.
set -eu
authority=/state/authority
[ -d "$authority" ] || shoal certs init "$authority"
issue() {  # NAME [OPTION...]
    name=$1 && shift
    [ -d "/certificates/$name" ] || shoal certs issue "$name" --shoal compose --ca "$authority" --out "/certificates/$name" "$@"
}
issue coordinator --role coordinator
number=1
while [ "$number" -le "$NODES" ]; do
    issue "$PROJECT-node-$number"
    number=$((number + 1))
done
