// SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0)
/*
 * Tells user space of every process that executes a file. A raw tracepoint: it needs no tracefs,
 * and the program reads nothing of the kernel's memory, which lockdown would forbid.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "process.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Processes that user space was not told of, because there was no room. */
__u64 untold = 0;

/* Their process ids. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144);
} started SEC(".maps");

SEC("raw_tp/sched_process_exec")
int process_started(void *context)
{
	struct process process = {};
	__u64 *pid;

	(void)context;
	if (!current_process(&process))
		return 0;
	pid = bpf_ringbuf_reserve(&started, sizeof(*pid), 0);
	if (!pid) {
		__sync_fetch_and_add(&untold, 1);
		return 0;
	}
	*pid = process.pid;
	bpf_ringbuf_submit(pid, 0);
	return 0;
}
