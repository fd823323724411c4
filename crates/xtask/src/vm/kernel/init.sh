#!/bin/busybox sh
# The initial file system's init: lays the disks over each other, with a writable layer on top, and
# goes on there.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do
    insmod "$module" || echo "vm: insmod $module failed"
done
# Disks come up when they please.
waited=0
while [ "$(ls /sys/block | grep -c '^vd')" -lt 3 ] && [ $waited -lt 100 ]; do
    sleep 0.1
    waited=$((waited + 1))
done
for disk in /sys/block/vd*; do
    place=/disks/$(cat "$disk/serial")
    mkdir -p "$place"
    mount -t ext4 -o ro "/dev/${disk##*/}" "$place"
done
mkdir /disks/upper
mount -t tmpfs tmpfs /disks/upper
mkdir /disks/upper/root /disks/upper/work
mount -t overlay -o \
    lowerdir=/disks/payload:/disks/modules:/disks/userland,upperdir=/disks/upper/root,workdir=/disks/upper/work \
    overlay /root || echo "vm: the disks can't be laid over each other"
umount /proc /sys
exec switch_root /root /vm/init
