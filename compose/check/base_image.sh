#!/bin/sh
# base_image.sh TAG: where no registry can be reached, a stand-in for python:3.11-slim, of Debian's own packages.
# Needs root, debootstrap and a running Docker engine. The certificates that this machine trusts go into it.
set -eu
tag=$1
root=$(mktemp -d)
trap 'umount "$root/proc" "$root/sys" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT
chmod 755 "$root"  # it becomes /, which everybody must be able to enter
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; exit 1; }
rm -f "$root.log"
umount "$root/proc" "$root/sys" 2>/dev/null || true
mkdir -p "$root/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null 2>&1
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
(cd "$root/usr/share" && rm -rf doc/* man/* locale/* info/*)  # as slim images do
tar -C "$root" --numeric-owner -c . | docker import \
    -c 'CMD ["python3"]' -c 'ENV LANG=C.UTF-8' \
    -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$tag" >/dev/null
