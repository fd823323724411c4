// SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0)
/*
 * What ecapture's own programs are compared with: an empty one, for the cost of being probed at
 * all, and the usual design of programs that capture TLS plaintext. That one is probed at the first
 * byte of
 * (*Conn).writeRecordLocked and at all returns of (*Conn).Read, puts each call's first 16 KiB
 * together in a per-CPU array and sends a record of fixed size through a perf buffer, which wakes
 * its reader for every single one.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "registers.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* crypto/tls, recordTypeApplicationData */
#define RECORD_TYPE_APPLICATION_DATA 23
#define PAYLOAD_MAX		     16384

/* Where a return of (*Conn).Read finds its arguments, in bytes above SP. The only read-only data,
 * so that user space sets it without knowing names. */
const volatile struct read_arguments {
	__u32 buffer;
	__u32 capacity;
} read_arguments = {};

struct event {
	__u64 time_ns;
	__u32 pid;
	__u32 tid;
	__u32 length;
	__u8 comm[16];
	__u8 direction;
	__u8 payload[PAYLOAD_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} events SEC(".maps");

static __always_inline void output(struct registers *registers, __u8 direction, __u64 source,
				   __u64 length)
{
	__u64 ids = bpf_get_current_pid_tgid();
	struct event *event;
	__u32 zero = 0;

	if (!length || length >> 63)
		return;
	event = bpf_map_lookup_elem(&scratch, &zero);
	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->pid = ids >> 32;
	event->tid = (__u32)ids;
	event->direction = direction;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (length > PAYLOAD_MAX)
		length = PAYLOAD_MAX;
	event->length = length;
	if (bpf_probe_read_user(event->payload, length, (void *)source))
		return;
	bpf_perf_event_output(registers, &events, BPF_F_CURRENT_CPU, event, sizeof(*event));
}

SEC("uprobe")
int empty(struct registers *registers)
{
	(void)registers;
	return 0;
}

/* func (c *Conn) writeRecordLocked(typ recordType, data []byte) (int, error), in the register ABI
 */
SEC("uprobe")
int write_entry(struct registers *registers)
{
	if ((__u8)registers->ARGUMENT_1 == RECORD_TYPE_APPLICATION_DATA)
		output(registers, 0, registers->ARGUMENT_2, registers->ARGUMENT_3);
	return 0;
}

/* A return of func (c *Conn) Read(b []byte) (int, error), in the register ABI */
SEC("uprobe")
int read_return(struct registers *registers)
{
	__u64 source, capacity, length = registers->ARGUMENT_0;

	if (bpf_probe_read_user(&source, sizeof(source),
				(void *)(registers->sp + read_arguments.buffer)) ||
	    bpf_probe_read_user(&capacity, sizeof(capacity),
				(void *)(registers->sp + read_arguments.capacity)) ||
	    length > capacity)
		return 0;
	output(registers, 1, source, length);
	return 0;
}
