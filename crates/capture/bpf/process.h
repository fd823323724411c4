/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Who runs, and whether the user wants to see it.
 */
#ifndef ECAPTURE_PROCESS_H
#define ECAPTURE_PROCESS_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

/* Only this process; 0: not asked for. */
const volatile __u32 filter_pid = 0;
/* Only processes of this user, if asked for. */
const volatile __u8 filter_by_uid = 0;
const volatile __u32 filter_uid = 0;
/* The pid namespace to report pids of; inode 0: the initial one. */
const volatile __u64 pid_namespace_device = 0;
const volatile __u64 pid_namespace_inode = 0;

struct process {
	__u32 pid;
	__u32 tid;
};

/* Says who runs; false if our own pid namespace does not show it. */
static __always_inline bool current_process(struct process *process)
{
	if (pid_namespace_inode) {
		struct bpf_pidns_info ids;

		if (bpf_get_ns_current_pid_tgid(pid_namespace_device, pid_namespace_inode, &ids,
						sizeof(ids)))
			return false;
		process->pid = ids.tgid;
		process->tid = ids.pid;
	} else {
		__u64 ids = bpf_get_current_pid_tgid();

		process->pid = ids >> 32;
		process->tid = (__u32)ids;
	}
	return true;
}

static __always_inline bool wanted_user(void)
{
	return !filter_by_uid || (__u32)bpf_get_current_uid_gid() == filter_uid;
}

#endif
