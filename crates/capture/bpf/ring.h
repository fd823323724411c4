/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The ring buffer to user space, and when user space is woken. Included once by each object: each
 * has its own ring.
 */
#ifndef ECAPTURE_RING_H
#define ECAPTURE_RING_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "record.h"

/* Wake user space when this many bytes wait in the ring. */
const volatile __u64 wake_threshold = 0;

/* What is not in a map is in .bss, which user space maps; this has to be the first there. */
struct shared_state shared = {};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set by user space */
} ring SEC(".maps");

static __always_inline void count(__u64 *counter, __u64 amount)
{
	__sync_fetch_and_add(counter, amount);
}

/* Whether to wake user space, asked once per record. */
static __always_inline __u64 wakeup_flags(void)
{
	__u32 wake = *(volatile __u32 *)&shared.wake;

	if (wake == WAKE_NOBODY)
		return BPF_RB_NO_WAKEUP;
	if (wake == WAKE_UNDER_PRESSURE &&
	    bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) < wake_threshold)
		return BPF_RB_NO_WAKEUP;
	*(volatile __u32 *)&shared.wake = WAKE_NOBODY;
	return BPF_RB_FORCE_WAKEUP;
}

#endif
