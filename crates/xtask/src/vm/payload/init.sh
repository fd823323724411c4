#!/bin/sh
# The machine's init: mounts what a system has mounted, runs the tests that the kernel's command line
# names, and turns the machine off. Lines beginning with "vm: " are for whoever reads the log.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb USER=root
. /vm/environment
# Emulation is slow.
export ECAPTURE_TEST_PATIENCE=10 RUST_BACKTRACE=0

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
chmod 1777 /tmp /dev/shm
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname vm

tests=all
for word in $(cat /proc/cmdline); do
    case $word in
        ecapture.tests=*) tests=${word#*=} ;;
        ecapture.hide_btf) mount -t tmpfs tmpfs /sys/kernel/btf ;;
    esac
done

# What the kernel has, in the program's own words.
echo "vm: up $(cut -d ' ' -f 1 /proc/uptime) s"
"$ECAPTURE" doctor | sed 's/^/vm: doctor: /'

run() {
    name=$1
    shift
    echo "vm: begin $name"
    "/vm/$name" --include-ignored "$@"
    echo "vm: end $name $?"
}

# Not here: programs of other people and of few tests, and what has nothing to do with the kernel.
cd /tmp
common="--skip third_party --skip connections:: --skip inspect:: --skip wrong_input::a_ --skip at_full_speed --skip role"
case $tests in
    quick)
        run live --exact --test-threads 2 \
            exact::go_1_15::stripped_pie exact::go_1_27::default exact::go_1_24::reads_from_returns \
            exact::a_uid_keeps_other_users_processes_out \
            keylog::go_1_24::keys_are_those_that_the_program_logs \
            incomplete::every_lost_byte_is_counted_where_it_is_missing \
            harmless::nothing_is_left_in_tracefs \
            pcap::decryption::go_1_27 pcap::namespace::nothing_of_ours_remains
        run packets --exact --test-threads 1 \
            client_is_told_apart_by_clsact_filters_too \
            server_that_starts_later_is_told_apart_across_namespaces \
            filter_and_snaplen_hold_and_all_packets_are_all
        ;;
    some)
        run live --test-threads 2 $common exact::go_1_15 exact::go_1_27 keylog::go_1_27 \
            pcap::decryption pcap::attribution process::
        run packets --test-threads 1 $common
        ;;
    all)
        run live --test-threads 2 $common
        run packets --test-threads 1 $common
        ;;
    *)
        filters=$(echo "$tests" | tr , ' ')
        run live --test-threads 2 $common $filters
        run packets --test-threads 1 $common $filters
        ;;
esac
dmesg --level emerg,alert,crit,err,warn 2>/dev/null | grep -E 'BUG|WARNING|Oops|panic|Call Trace' |
    sed 's/^/vm: kernel says: /'
echo "vm: done $(cut -d ' ' -f 1 /proc/uptime) s"
sync
echo o >/proc/sysrq-trigger
sleep 60
