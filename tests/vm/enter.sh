#!/bin/sh
# Runs as root in a freshly booted virtual machine and prepares the place the tests run in.
#
# usage: enter.sh MODULE...
#
# virtme-ng has booted on the host's own files, shared read-only and read again from the host each time:
# starting a Python takes seconds that way. So the same files are shared a second time, cached, under an
# overlay that makes all of them writable and forgets the changes, and that becomes the root. The host
# learns what happened from two files in the exchange folder: what was printed, and the exit status.
set -eu

share() { # TAG FOLDER OPTIONS
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}

share exchange /run/exchange rw
exec >>/run/exchange/output 2>&1 </dev/null

share host /run/host ro,cache=loose
mkdir -p /run/changes/upper /run/changes/work /run/new
mount -t overlay -o lowerdir=/run/host,upperdir=/run/changes/upper,workdir=/run/changes/work \
    root /run/new
for folder in /dev /proc /sys; do
    mount --rbind "$folder" "/run/new$folder"
done
mount -t tmpfs -o mode=0755 run /run/new/run
mkdir -p /run/new/run/exchange /run/new/run/old
# In /tmp, whoever started this machine may not do what root here may: the files are the host's.
mkdir -m 1777 /run/new/run/tmp
mount --move /run/exchange /run/new/run/exchange

# Let modprobe find this kernel's modules under the new root too.
modules=/lib/modules/$(uname -r)
mkdir -p /run/new/lib/modules
[ -e "/run/new$modules" ] || ln -s "$(readlink -f "$modules")" "/run/new$modules"

for module in "$@"; do
    modprobe "$module"
done
ip link set lo up
ulimit -H -n 524288

cd /run/new
pivot_root . run/old
umount -l /run/old
status=0
sh /run/exchange/command || status=$?
echo "$status" >/run/exchange/status.new
mv /run/exchange/status.new /run/exchange/status
