#!/bin/sh
# The machine's init: mounts what a system has mounted, runs the tests that the kernel's command line
# names, and turns the machine off. Lines beginning with "vm: " are for whoever reads the log.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb USER=root
. /vm/environment
# Emulation is slow.
export ECAPTURE_TEST_PATIENCE=10 RUST_BACKTRACE=0

# Mounts an empty file system there, but for what is tested: that lies where it was built.
hide() {
    mkdir -p /mnt/hidden
    mount --bind "$1" /mnt/hidden
    mount -t tmpfs tmpfs "$1"
    for entry in /mnt/hidden/* /mnt/hidden/.[!.]*; do
        if [ -d "$entry" ]; then
            mkdir "$1/${entry##*/}"
            mount --bind "$entry" "$1/${entry##*/}"
        fi
    done
    umount /mnt/hidden
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
hide /tmp
hide /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
chmod 1777 /tmp /dev/shm
mkdir -p /mnt
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

# What has nothing to do with the kernel, or wants a program that is not here.
not_here="--skip third_party --skip caddy --skip etcd --skip a_watch_is_shown --skip grpc_is_read --skip websocket_is_read
    --skip tshark --skip other_languages --skip inspect:: --skip wrong_input::a_ --skip at_full_speed --skip role
    --skip copies:: --skip libraries:: --skip those_of_a_copy"
# Few tests that need everything of which kernels have several kinds.
quick="exact::go_1_15::stripped_pie exact::go_1_27::default
    keylog::go_1_24::keys_are_those_that_the_program_logs
    incomplete::every_lost_byte_is_counted_where_it_is_missing
    pcap::decryption::go_1_27 doctor::"
quick_packets="client_is_told_apart_by_clsact_filters_too
    server_that_starts_later_is_told_apart_across_namespaces"
# One or more of each kind of test.
usual="$quick exact::go_1_24::reads_from_returns exact::a_uid_keeps_other_users_processes_out
    connections::every_generation http::decoded_http http::a_connection_joined websocket::messages_are_what
    plain::both_ends privileges::
    recording::text_and_json recording::losses recording::packets
    faults::a_payload_that_is_not_in_memory process::the_executable_may_be
    harmless::nothing_is_left_in_tracefs harmless::a_program_that_is_overwritten
    many::a_program_that_is_overwritten
    pcap::namespace::nothing_of_ours_remains
    many::ten_programs many::processes_of_one many::the_end_of_the_last containers:: exec_gate::"
usual_packets="$quick_packets filter_and_snaplen_hold_and_all_packets_are_all
    filters_of_a_capture_that_was_killed what_remains_of_the_privileges"
case $tests in
    quick)
        run live --test-threads 2 $not_here $quick
        run packets --test-threads 1 $not_here $quick_packets
        ;;
    usual)
        run live --test-threads 2 $not_here $usual
        run packets --test-threads 1 $not_here $usual_packets
        ;;
    all)
        run live --test-threads 2 $not_here
        run packets --test-threads 1 $not_here
        ;;
    *)
        filters=$(echo "$tests" | tr , ' ')
        run live --test-threads 2 $not_here $filters
        run packets --test-threads 1 $not_here $filters
        ;;
esac
dmesg --level emerg,alert,crit,err,warn 2>/dev/null | grep -E 'BUG|WARNING|Oops|panic|Call Trace' |
    sed 's/^/vm: kernel says: /'
echo "vm: done $(cut -d ' ' -f 1 /proc/uptime) s"
sync
echo o >/proc/sysrq-trigger
sleep 60
